"""The tested versions: one file that covers every Python and everything that is installed, and a line where it was left."""

import re
import shlex
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.version import Version

from trainer.machine import releases

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pins() -> list[Requirement]:
    lines = releases.CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    return [Requirement(line.partition("#")[0]) for line in lines if line.partition("#")[0].strip()]


def holding(python: str, system: str) -> dict[str, Requirement]:
    """Pins that hold for a Python on a system."""
    place = {
        **default_environment(),
        "python_version": python,
        "python_full_version": f"{python}.4",
        "sys_platform": system,
        "platform_system": {"linux": "Linux", "darwin": "Darwin", "win32": "Windows"}[system],
    }
    found: dict[str, Requirement] = {}
    for pin in pins():
        if pin.marker is None or pin.marker.evaluate(place):
            assert pin.name not in found, f"{pin.name} has two versions on Python {python}, {system}"
            found[pin.name] = pin
    return found


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_every_python_gets_one_exact_version_inside_the_asked_range(python, system):
    pinned = holding(python, system)
    project = PROJECT["project"]
    for text in project["dependencies"] + project["optional-dependencies"]["test"]:
        asked = Requirement(text)
        (pin,) = pinned[asked.name].specifier
        assert pin.operator == "==" and asked.specifier.contains(pin.version), f"{text}, and the constraints say {pin}"


def test_whatever_the_two_commands_install_has_a_pin():
    """Walks what is installed here from the project's own wishes down, as pip does."""
    pinned, waiting, seen = releases.tested(), [], set()
    project = PROJECT["project"]
    waiting += [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["test"]]
    while waiting:
        asked = waiting.pop()
        name = re.sub(r"[-_.]+", "-", asked.name).lower()
        extras = asked.extras or {""}
        if (name, *extras) in seen or not any(
            asked.marker is None or asked.marker.evaluate({"extra": ""}) for _ in "x"
        ):
            continue
        seen.add((name, *extras))
        assert name in pinned, f"{name} has no pin: run .ci/constrain"
        if not is_tested(name, pinned[name]):
            continue
        for text in metadata.requires(name) or []:
            needs = Requirement(text)
            if needs.marker is None or any(needs.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(Requirement(str(needs).partition(";")[0]))
    assert len(seen) > 20


def is_tested(name: str, pin: str) -> bool:
    """Another version than the tested one (`.ci/versions` installs such sets) may need what the file need not know."""
    try:
        return Version(metadata.version(name)).public == pin
    except metadata.PackageNotFoundError:
        return False


def test_the_build_backend_is_pinned_to_the_same_version():
    (backend,) = map(Requirement, PROJECT["build-system"]["requires"])
    assert str(backend) == f"setuptools=={releases.tested()['setuptools']}"


def test_the_readme_installs_through_the_constraints():
    commands = re.findall(r"^python3 -m venv .*$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) == 2 and all("pip install -c trainer/constraints.txt -e" in command for command in commands)


def test_the_wheel_carries_the_constraints():
    assert "constraints.txt" in PROJECT["tool"]["setuptools"]["package-data"]["trainer"]
    assert releases.CONSTRAINTS == ROOT / "trainer" / "constraints.txt"


def test_the_wheel_has_whatever_the_checkout_has_beside_its_modules():
    """Pages for readers of the source apart."""
    data = PROJECT["tool"]["setuptools"]["package-data"]
    for package, folder in (("trainer", "trainer"), ("trainer.presets", "presets"), ("trainer.kernels", "kernels")):
        there = {path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
        carried = {path for pattern in data[package] for path in (ROOT / folder).glob(pattern)}
        left = {path.relative_to(ROOT).as_posix() for path in there - carried}
        assert left <= {"trainer/README.md", "trainer/settings/REFERENCE.md"}, left


@pytest.fixture
def installed(monkeypatch):
    """Sets the version that a package seems to have."""
    real, seeming = metadata.version, {}
    for name in releases.asked():  # what is installed where the tests run may be another set
        seeming[name] = releases.tested()[name]
    monkeypatch.setattr(metadata, "version", lambda name: seeming.get(name) or real(name))
    return seeming


def test_the_tested_set_says_nothing_and_a_local_build_of_torch_is_that_version(installed):
    assert releases.warning() is None
    installed["torch"] = releases.tested()["torch"] + "+cpu"
    assert releases.warning() is None


def test_both_ends_of_a_range_were_run(installed):
    for name, asked in releases.asked().items():
        lowest = next(each.version for each in asked.specifier if each.operator == ">=")
        installed[name] = lowest
    assert releases.warning() is None


def test_a_version_outside_is_named_with_one_command_that_mends_it(installed):
    installed["accelerate"], installed["peft"] = "99.1", "0.17.1"
    what, fix = releases.warning()
    assert "accelerate 99.1 (tested up to" in what and "peft 0.17.1 (asked for: " in what
    assert shlex.split(fix)[1:] == ["-m", "pip", "install", "-c", str(releases.CONSTRAINTS), "accelerate", "peft"]


def test_a_missing_package_is_not_called_untested(installed, monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert releases.warning() is None
