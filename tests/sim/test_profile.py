"""Profile files: what is refused, and which one a device gets."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sim.errors import ProfileError
from sim.profile import (
    MAX_BYTES,
    SCHEMA,
    content_sha256,
    find_profile,
    is_of,
    nearest_version,
    read_profile,
    shipped_profiles,
)

H200 = shipped_profiles()["h200/published"]


def written(folder: Path, rehash: bool = True, **changes) -> Path:
    """A small valid profile with some keys changed."""
    content = {
        "schema": SCHEMA,
        "device": "NVIDIA H200",
        "source": "a test",
        "convention": "warm",
        "units": {},
        "provenance": {},
        "subject": {},
        "operations": {"gemm": {"error": {"held_out": {"n": 0, "mape": None, "p90": None}}}},
    }
    content["sha256"] = content_sha256(content)
    content.update(changes)
    if rehash:
        content["sha256"] = content_sha256(content)
    path = folder / "profile.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_written_profile_reads_back(tmp_path):
    assert read_profile(written(tmp_path)).device == "NVIDIA H200"


def test_shipped_profiles_are_small_and_read_back():
    for name, path in shipped_profiles().items():
        profile = read_profile(path)
        assert path.stat().st_size < MAX_BYTES, name
        assert profile.operations, name
        assert profile.provenance["measurements_sha256"], name


def test_shipped_profiles_name_no_absolute_path():
    for path in shipped_profiles().values():
        text = path.read_text(encoding="utf-8")
        assert '"/' not in text
        assert "work/" not in text


def test_a_changed_value_is_refused(tmp_path):
    text = H200.read_text(encoding="utf-8")
    altered = tmp_path / "altered.json"
    altered.write_text(text.replace('"device": "NVIDIA H200"', '"device": "NVIDIA H100"', 1), encoding="utf-8")
    with pytest.raises(ProfileError, match=r"altered after it was written"):
        read_profile(altered)


def test_a_cut_off_file_is_refused(tmp_path):
    cut = tmp_path / "cut.json"
    cut.write_bytes(H200.read_bytes()[:5000])
    with pytest.raises(ProfileError, match="not a complete JSON file"):
        read_profile(cut)


def test_another_schema_is_refused(tmp_path):
    with pytest.raises(ProfileError, match=r"profile.schema must be 1, got 99"):
        read_profile(written(tmp_path, schema=99))


def test_another_device_is_refused(tmp_path):
    with pytest.raises(ProfileError, match=r"profile.device must be 'NVIDIA L40S', got 'NVIDIA H200'"):
        read_profile(written(tmp_path), device="NVIDIA L40S")


def test_a_missing_key_is_named(tmp_path):
    path = written(tmp_path)
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["convention"]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ProfileError, match="profile has no convention"):
        read_profile(path)


def test_a_missing_file_and_one_too_large_are_refused(tmp_path):
    with pytest.raises(ProfileError, match="no such profile"):
        read_profile(tmp_path / "none.json")
    large = tmp_path / "large.json"
    large.write_bytes(b" " * (MAX_BYTES + 1))
    with pytest.raises(ProfileError, match="at most 400000"):
        read_profile(large)


def test_something_other_than_an_object_is_refused(tmp_path):
    path = tmp_path / "list.json"
    path.write_text("[1, 2]", encoding="utf-8")
    with pytest.raises(ProfileError, match="is a JSON object, got list"):
        read_profile(path)


def test_an_operation_that_was_not_measured_is_refused(tmp_path):
    with pytest.raises(ProfileError, match="no operation 'decode_attention', it has gemm"):
        read_profile(written(tmp_path)).operation("decode_attention")


def test_a_device_gets_its_profile_by_name_of_either_length():
    assert find_profile(None, "NVIDIA H200 SXM").device == "NVIDIA H200"
    assert find_profile(None, "NVIDIA RTX PRO 6000 Blackwell").device.startswith("NVIDIA RTX PRO 6000 Blackwell")


@pytest.mark.parametrize(
    ("version", "taken"),
    [(None, "0.24"), ("0.24.1", "0.24"), ("0.19.0", "0.14"), ("0.14", "0.14"), ("v0.11.2", "0.14"), ("1.0", "0.24")],
)
def test_of_several_profiles_that_of_the_engines_version_is_taken_else_the_newest_before_it(version, taken):
    for device in ("NVIDIA H100 80GB HBM3", "NVIDIA H200 SXM", "NVIDIA L40S"):
        found = find_profile(None, device, version)
        assert found.provenance["vllm"].startswith(taken)
        assert is_of(found.device, device)


def test_our_own_kernels_go_before_those_of_any_version():
    published = find_profile(None, "NVIDIA H200 SXM")
    own = replace(published, path="triton.json", provenance={})
    assert nearest_version([published, own], "0.24") is own


def test_a_device_without_profile_hears_of_the_roofline():
    with pytest.raises(ProfileError, match=r"no profile of 'NVIDIA L4'.*cost=roofline"):
        find_profile(None, "NVIDIA L4")


def test_a_misspelt_profile_hears_the_nearest():
    with pytest.raises(ProfileError, match=r"got 'h200/publshed'; did you mean h200/published"):
        find_profile("h200/publshed", "NVIDIA H200 SXM")


def test_the_profile_of_another_device_is_refused_by_name():
    with pytest.raises(ProfileError, match=r"measured on 'NVIDIA H200', but hardware.device is 'NVIDIA L40S'"):
        find_profile("h200/published", "NVIDIA L40S")


def test_names_of_devices_match_by_words_not_letters():
    assert is_of("NVIDIA H200", "NVIDIA H200 SXM")
    assert not is_of("NVIDIA H20", "NVIDIA H200")
