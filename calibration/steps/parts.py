"""``step=parts``: experts and latent attention of published tables, in files of their own beside a profile."""

import hashlib
from datetime import date
from pathlib import Path
from typing import Any

from calibration.experts import fit_experts
from calibration.fit import UNITS, commit, told, write_profile
from calibration.importers.aiconfigurator import LICENSE
from calibration.importers.aiconfigurator_layers import EXPERTS, LATENT, expert_rows, latent_rows, table_files
from calibration.latent import fit_latent
from sim.config import conf_dir, make
from sim.errors import ConfigError, ProfileError
from sim.profile import SCHEMA, content_sha256, part_path, read_profile, shipped_profiles
from sim.spec import Mla, ModelSpec

TIMED_MODEL = "deepseek-v3"  # whose block tables of latent attention hold
MOST_OFF = 0.06  # of blocks held out, from which on a fit of latent attention is not worth its file
CONVENTION = "mean of CUDA-graph replays without an L2 flush; experts: both products and the activation between them"


def parts(profile: str, path: str, seed: int) -> None:
    """Fit what the tables in the folder ``path`` hold of layers that only some models have.

    Parameters
    ----------
    profile : str
        ``device/source`` of a shipped profile, or a file: whose parts they become, and whose version of vLLM is taken.

    Raises
    ------
    ConfigError
        If there is no such profile.
    ProfileError
        If the tables are not what is published, hold nothing of that version, or times that cannot be.
    """
    target = shipped_profiles().get(profile, Path(profile))
    if not target.is_file():
        raise ConfigError(f"profile must be one of {', '.join(shipped_profiles())} or a file, got {profile!r}")
    whole, folder = read_profile(target), Path(path)
    version = str(whole.provenance["vllm"])
    found: dict[str, dict[str, Any]] = {}
    for dtype, rows in expert_rows(folder, version):
        name = f"experts_{dtype}"
        found[name] = {name: fit_experts(rows, seed)}
        print(told(name, found[name]), flush=True)
    model = timed_model()
    attention = model.stack[0].attention
    assert isinstance(attention, Mla), "the model that was timed has latent attention"
    for dtype, kv_dtype, both in latent_rows(folder, version):
        gemm = "gemm" if dtype == "bf16" else "gemm_fp8"
        operations = {
            name: fit_latent(name, rows, whole.operations, attention, model.d_model, gemm, kv_dtype, seed)
            for name, rows in both.items()
        }
        for name in operations:
            print(f"{dtype}, KV {kv_dtype}: {told(name, operations)}", flush=True)
        if max(one["error"]["held_out"]["mape"] for one in operations.values()) <= MOST_OFF:
            found[f"latent_{dtype}_{kv_dtype}"] = operations
        else:
            print(f"  left out: more than {MOST_OFF:.0%} off, the data sheet is as near")
    if not found:
        raise ProfileError(f"{path}: no table of experts or latent attention of vLLM {version}")
    tables = [
        file.path for name in (EXPERTS[0], *(ending for ending, _ in LATENT.values()))
        for file in table_files(folder, name, version)
    ]  # fmt: skip
    provenance = {
        "vllm": version,
        "tables_sha256": {table.name: hashlib.sha256(table.read_bytes()).hexdigest() for table in tables},
        "license": LICENSE,
        "matrices_of": whole.sha256,
        "held_out_seed": seed,
        "fitted": date.today().isoformat(),
        "commit": commit(),
    }
    for name, operations in found.items():
        content = {
            "schema": SCHEMA, "device": whole.device, "source": whole.source, "convention": CONVENTION, "units": UNITS,
            "subject": {}, "provenance": provenance, "operations": operations,
        }  # fmt: skip
        content["sha256"] = content_sha256(content)
        write_profile(content, part_path(target, name))


def timed_model() -> ModelSpec:
    """The model whose block was timed."""
    import yaml  # type: ignore[import-untyped]

    sheet = yaml.safe_load((conf_dir() / "model" / f"{TIMED_MODEL}.yaml").read_text(encoding="utf-8"))
    model: ModelSpec = make(sheet, "model")
    return model
