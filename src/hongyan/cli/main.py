"""The `hongyan` command."""

from __future__ import annotations

import click

from hongyan import __version__
from hongyan.cli.serve import serve
from hongyan.cli.token import token


class _Commands(click.Group):
    """`chat` and `bench` are loaded when they are asked for: the server needs none of their libraries."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["serve", "chat", "token", "bench"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "chat":
            from hongyan.cli.chat import chat

            return chat
        if cmd_name == "bench":
            from hongyan.cli.bench import bench

            return bench
        return super().get_command(ctx, cmd_name)


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="hongyan")
def main() -> None:
    """Hongyan 鸿雁: an instant-messaging server that keeps every acknowledged message.

    \b
    A first conversation, in three terminals:
      hongyan serve
      hongyan chat --user alice --to @bob
      hongyan chat --user bob --to @alice

    `hongyan COMMAND --help` tells more about each.
    """


main.add_command(serve)
main.add_command(token)
