"""What `python -m calibration step=…` can do: one function a file, named by conf/calibration/step."""
