"""``step=serve``: the engine behind HTTP, for a real client."""

from collections.abc import Sequence as Row
from pathlib import Path

from sim.errors import ConfigError


def serve(
    device: str,
    model: Row[str],
    cache: Row[str],
    settings: Row[str],
    weights: str | None,
    host: str,
    port: int,
    seed: int,
) -> None:
    """Serve ``/v1/completions`` until stopped; on this machine alone unless ``host`` says otherwise.

    Raises
    ------
    ConfigError
        If the extra is not installed, or the engine does not do what is asked for.
    """
    try:
        import uvicorn
    except ImportError:
        raise ConfigError("step=serve needs an HTTP server: pip install 'kvtwin[serve]'") from None
    from calibration.engine.build import device_of, engine_of
    from calibration.engine.decoder import Decoder
    from calibration.engine.http import Service, application
    from sim.config import compose, make

    if not 0 < port < 1 << 16:
        raise ConfigError(f"port must be in [1, 65535], got {port}")
    config = compose([*model, *settings, *cache, "batching.plans_ahead=false"])
    spec = make(config["model"], "model")
    decoder = Decoder(spec, device_of(device), spec.kv_dtype, seed, Path(weights) if weights else None)
    print(f"{spec.name}, {spec.n_params / 1e6:.1f} M parameters on {device}: http://{host}:{port}/v1", flush=True)
    uvicorn.run(application(Service(engine_of(config, decoder))), host=host, port=port, log_level="warning")
