"""Which group an image is in, as a table says, so that figures can be told for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mobilenets.data.tables import image_column, read_csv


@dataclass(frozen=True)
class Groups:
    """Groups by an image's file, or by the folder that it is in.

    >>> groups = Groups(Path("people.csv"), "country", {"ann": "NL", "b.jpg": "FR"})
    >>> groups.of("faces/ann/1.jpg"), groups.of("faces/b.jpg"), groups.of("faces/c.jpg")
    ('NL', 'FR', None)
    """

    table: Path
    column: str
    of_name: Mapping[str, str]

    def of(self, image: str) -> str | None:
        """The group of an image by its path; None where the table says nothing."""
        parts = Path(image).parts
        names = ["/".join(parts[start:]) for start in range(len(parts))]
        folders = ["/".join(parts[start:-1]) for start in range(len(parts) - 1)]
        return next(
            (self.of_name[name] for name in (*names, *folders) if name in self.of_name), None
        )


def find_groups(where: str, column: str) -> Groups:
    """Read groups from the CSV that a data set is, or from one that lies in its folder.

    The column `image`, or the first, names a file, or a folder such as a person's or a class's.

    Raises:
        ValueError: no table has the column, in one sentence that says which there are.
    """
    path = Path(where)
    tables = [path] if path.is_file() else sorted(path.glob("*.csv"))
    if not tables:
        raise ValueError(
            f"--by {column}: {where} holds no CSV; its first column names files or folders, and one is called {column}"
        )
    seen: list[str] = []
    for table in tables:
        header, rows = read_csv(table)
        if not header:
            continue
        named = image_column(header) or header[0]
        others = [name for name in header if name != named]
        seen += others
        if column in others:
            told = {row[named].strip(): row[column].strip() for _, row in rows}
            return Groups(table, column, {name: group for name, group in told.items() if group})
    raise ValueError(
        f"--by {column}: {tables[0] if len(tables) == 1 else where} has the columns {', '.join(seen[:20]) or 'of none'}"
    )
