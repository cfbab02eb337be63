"""The table of settings for the documentation."""

from __future__ import annotations

from lorry.settings import options


def markdown_table() -> str:
    """The settings as a Markdown table, one row each, for the documentation."""
    lines = ["| Flag | Variable | Key | Default | |", "|---|---|---|---|---|"]
    for option in options():
        flag = f"`{option.flag}`"
        if option.negative_flag:
            flag += f", `{option.negative_flag}`"
        text = option.help
        if option.choices:
            text += " (" + ", ".join(f"`{choice}`" for choice in option.choices) + ")"
        lines.append(
            f"| {flag} | `{option.variable}` | `{option.name}` | {option.default_text} | {text} |"
        )
    return "\n".join(lines) + "\n"
