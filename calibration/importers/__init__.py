"""Published measurements, read into the schema of `calibration.measurements`. One file a source."""
