"""An option with a new name, which still accepts its earlier one (see `gladstone.renamed`)."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

from gladstone.renamed import announce


class RenamedOption(click.Option):
    """An option that is also accepted under `earlier`, a name that no help shows. Both at once are a usage error."""

    def __init__(self, param_decls: Sequence[str], *, earlier: str, **settings: Any) -> None:
        super().__init__(param_decls, **settings)
        self.earlier = earlier
        self._parsed = click.Option([earlier, f"{self.name}_by_its_earlier_name"], **settings)

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        super().add_to_parser(parser, ctx)
        self._parsed.add_to_parser(parser, ctx)

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        name, by_earlier_name = str(self.name), str(self._parsed.name)
        if by_earlier_name in opts:
            if name in opts:
                raise click.UsageError(f"{self.earlier} is the earlier name of {self.opts[0]}. Give one of them.", ctx)
            announce(self.earlier, self.opts[0])
            opts = {**opts, name: opts[by_earlier_name]}
        return super().handle_parse_result(ctx, opts, args)
