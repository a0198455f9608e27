"""Configuration: every mistake is one line that names the key and what is allowed."""

import pytest
import yaml

import sim
from sim.check import check, unknown
from sim.config import compose, make
from sim.errors import ConfigError


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["cache=paeged"], "cache=paeged is not a choice; did you mean paged?"),
        (["scenario.ratee=3"], "scenario.ratee is not a setting; did you mean scenario.rate?"),
        (
            ["scenario=synthetic", "scenario.n_request=3"],
            "scenario.n_request is not a setting; did you mean scenario.n_req",
        ),
        (["sead=3"], "sead is not a setting; did you mean seed?"),
        (["nothing.here=3"], "nothing is not a setting"),
    ],
)
def test_a_misspelt_override_is_named_in_one_line(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)

    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("+scenario.ratee=3", r"^scenario\.ratee is not a setting; did you mean scenario\.rate\?$"),
        ("+scenario.dialogue.think.medain=3", r"^scenario\.dialogue\.think\.medain .* did you mean .*think\.median\?$"),
    ],
)
def test_a_key_added_with_a_plus_is_refused_with_the_nearest_known_one(override: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        compose([override])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("batching.max_num_seqs=0", "batching.max_num_seqs must be >= 1"),
        ("batching.max_num_seqs=many", "batching.max_num_seqs must be a whole number, got 'many'"),
        ("batching.max_num_seqs=1.5", "batching.max_num_seqs must be a whole number, got 1.5"),
        ("batching.max_num_seqs=[1]", "batching.max_num_seqs must be a whole number"),
        ("batching.max_num_seqs=8193", "batching.max_num_batched_tokens must be >= batching.max_num_seqs"),
    ],
)
def test_a_value_out_of_range_or_of_another_type_is_refused(override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(compose([override])["batching"], "batching")

    assert str(caught.value).startswith(expected)


def test_a_target_outside_the_trusted_packages_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^cost\._target_ must be in one of sim, .* got 'os\.system'$"):
        check({"_target_": "os.system", "command": "true"}, "cost")


def test_a_package_the_user_trusts_may_be_named() -> None:
    made = make({"_target_": "fractions.Fraction", "numerator": 1, "denominator": 2}, "cost", ("fractions",))

    assert made * 2 == 1


def test_a_target_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^cache\._target_ names nothing that exists, got 'sim\.kv\.Nothing'$"):
        check({"_target_": "sim.kv.Nothing"}, "cache")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "queue={_target_:sim.router.RoundRobin}",
            "queue._target_ must be a subclass of sim.batching.queue.Queue, got sim.router.RoundRobin",
        ),
        (
            "eviction={_target_:sim.router.RoundRobin,blank_first:null}",
            "eviction._target_ must have the methods of Evictor, got sim.router.RoundRobin without claim()",
        ),
    ],
)
def test_a_part_of_another_kind_is_refused(override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sim.simulate(override, "scenario.n_sessions=1")

    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize("value", ["{part}", "[{part}]", "{{a: {part}}}"])
def test_a_part_of_another_kind_is_refused_wherever_it_stands(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import scenarios.lengths
    from scenarios.distributions import Distribution

    def takes(part: Distribution | list[Distribution] | dict[str, Distribution]) -> None:
        """Whichever the YAML says."""

    takes.__module__ = "scenarios.lengths"
    monkeypatch.setattr(scenarios.lengths, "takes", takes, raising=False)
    node = yaml.safe_load(value.format(part="{_target_: sim.router.RoundRobin}"))

    with pytest.raises(ConfigError, match=r"^x\.part.*_target_ must have the methods of Distribution, got .* without "):
        check({"_target_": "scenarios.lengths.takes", "part": node}, "x")


def test_a_missing_mandatory_value_says_how_to_give_it() -> None:
    with pytest.raises(ConfigError, match=r"^scenario\.path must be given, for example scenario\.path="):
        compose(["scenario=replay"])


def test_what_the_run_itself_gives_a_cache_is_refused_as_a_setting() -> None:
    with pytest.raises(ConfigError, match=r"^cache\.capacity_tokens is not a setting"):
        sim.simulate("+cache.capacity_tokens=5", "scenario.n_sessions=1")


def test_without_a_near_key_all_are_listed() -> None:
    assert unknown("queue.zzz", ["by"], "queue") == "queue.zzz is not a setting; known here: by"
