"""Write the tables of docs/recipe.md: every option of a recipe, with its help text.

    python scripts/recipe_page.py

The text around the tables is left as it is.
"""

from pathlib import Path

from jaxft.config.options import Option, OptionGroup, parts

PAGE = Path(__file__).parents[1] / "docs" / "recipe.md"
BEGIN = "<!-- options: scripts/recipe_page.py -->"
END = "<!-- end of the options -->"


def main() -> None:
    """Write the page anew."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def page(old: str) -> str:
    """Return the page with the tables of today's options between its marks."""
    before, _, rest = old.partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = "\n\n".join(table(part) for part in parts())
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def table(part: OptionGroup) -> str:
    """Return a heading, a sentence and the table for a section, in Markdown."""
    level = "##" if "." not in part.names[0] else "###"
    heading = f"{level} {' and '.join(f'`{name}`' for name in part.names)}"
    columns = ["Option", "Type", "Default", "Meaning", "Name from"]
    rows = [columns, ["---"] * len(columns), *map(cells, part.options)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([heading, "", part.meaning, "", *lines])


def cells(option: Option) -> list[str]:
    """Return the cells of an option's row."""
    default = option.default if option.default == "required" else f"`{option.default}`"
    name = option.name.rpartition(".")[2]
    values = [f"`{name}`", option.kind, default, option.meaning, option.source]
    return [value.replace("|", "\\|") for value in values]


if __name__ == "__main__":
    main()
