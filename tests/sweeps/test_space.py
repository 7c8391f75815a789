"""Search spaces in Hydra's sweep syntax."""

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from cocoseg.errors import CocosegError
from cocoseg.sweeps.space import Space, make_distribution, split_overrides


def parse(*overrides: str) -> list:
    return OverridesParser.create().parse_overrides(list(overrides))


@pytest.mark.parametrize(
    ("written", "distribution"),
    [
        ("interval(1e-5,1e-2)", FloatDistribution(1e-5, 1e-2)),
        ("tag(log,interval(1e-5,1e-2))", FloatDistribution(1e-5, 1e-2, log=True)),
        ("int(interval(1,64))", IntDistribution(1, 64)),
        ("tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("range(2,9,2)", IntDistribution(2, 8, step=2)),
        ("range(0,0.5,0.25)", FloatDistribution(0, 0.25, step=0.25)),
        ("choice(a,b)", CategoricalDistribution(["a", "b"])),
        ("8,16", CategoricalDistribution(["8", "16"])),
        ("[1,2],[3,4]", CategoricalDistribution(["[1,2]", "[3,4]"])),
        ("true,null", CategoricalDistribution(["True", "null"])),
    ],
)
def test_what_is_searched(written: str, distribution):
    (override,) = parse(f"x={written}")
    assert make_distribution("x", override) == distribution


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("tag(ln,interval(1,2))", "x: tag ln is not known"),
        ("tag(log,interval(0,1))", "x=tag.*low"),
        ("interval(2,1)", "x=interval"),
        ("range(3,3)", "x=range"),
    ],
)
def test_what_can_not_be_searched(written: str, message: str):
    (override,) = parse(f"x={written}")
    with pytest.raises(CocosegError, match=message):
        make_distribution("x", override)


def test_the_command_line_wins():
    extra = parse("a=1,2", "b=1,2", "c=1,2")
    fixed, space = split_overrides(parse("a=5", "+b=7,8", "c=3,4", "d='x y'"), extra)
    assert fixed == ["a=5", "d='x y'"]
    assert space.describe() == {"b": "1,2", "+b": "7,8", "c": "3,4"}


@pytest.mark.parametrize(("extra", "message"), [([], "nothing to search"), (parse("a=1"), "a has one value")])
def test_nothing_to_search(extra, message: str):
    with pytest.raises(CocosegError, match=message):
        split_overrides(parse("d=1"), extra)


def test_proposals_are_written_as_overrides():
    written = ("lr=tag(log,interval(1e-6,1e-1))", "size=[1,2],[3,4]", "share=interval(0,1)", "n=range(1,5)")
    space = Space({one.get_key_element(): one for one in parse(*written)})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        trial = study.ask()
        point = space.propose(trial)
        again = [f"{key}={value}" for key, value in point.items()]
        values = {one.key_or_group: one.value() for one in parse(*again)}
        assert values["lr"] == pytest.approx(trial.params["lr"], rel=1e-5)
        assert len(point["share"]) <= 11
        assert values["size"] in ([1, 2], [3, 4])
        assert values["n"] == trial.params["n"]
        assert space.propose(trial) == point


def test_grids_list_all_points():
    space = Space({one.get_key_element(): one for one in parse("a=1,2", "b=range(0,3)", "c=x,y")})
    points = space.grid()
    assert len(points) == 12
    assert points[1] == {"a": "1", "b": "0", "c": "y"}
    assert len({tuple(point.items()) for point in points}) == 12


def test_grids_have_no_intervals():
    with pytest.raises(CocosegError, match="lr: sweep=grid can't list an interval"):
        Space({"lr": parse("lr=interval(0,1)")[0]}).grid()
