"""Gives an environment that holds the wheel all that it declares, and nothing else: by links, without a download."""

import sys
import sysconfig
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement


def needed(wheel: Distribution) -> dict[str, Distribution]:
    """What a distribution asks for, and what that asks for, from this environment.

    Raises:
        PackageNotFoundError: something of it is not installed here.
    """
    found: dict[str, Distribution] = {}
    waiting = [(wheel, "")]
    seen = set()
    while waiting:
        asking, extra = waiting.pop()
        for line in asking.requires or ():
            asked = Requirement(line)
            if asked.marker is None or asked.marker.evaluate({"extra": extra}):
                found[asked.name] = distribution(asked.name)
                more = {(asked.name, one) for one in ("", *asked.extras)} - seen
                waiting += [(found[name], one) for name, one in more]
                seen |= more
    return found


def link(package: Distribution, place: Path) -> None:
    """Put links to its modules and data in place; its programs stay where they are."""
    for path in package.files or ():
        if ".." not in path.parts and "__pycache__" not in path.parts:
            new = place / path
            new.parent.mkdir(parents=True, exist_ok=True)
            if not new.exists():
                new.symlink_to(path.locate().resolve())


def main(environment: Path) -> None:
    """Link into an environment that has been made without pip and got the wheel alone."""
    variables = {"base": str(environment), "platbase": str(environment)}
    place = Path(sysconfig.get_path("purelib", vars=variables))
    (wheel,) = distributions(path=[str(place)])
    for package in needed(wheel).values():
        link(package, place)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
