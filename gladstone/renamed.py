"""Options and fields with a new name: the earlier name works for one more release, and a line on stderr says so.

- An option: `@click.option("--base-precision", cls=RenamedOption, earlier="--onto", …)`, from
  `gladstone.commands.renamed_option`. Help and generated pages show the new name alone.
- A field of a YAML file, also for `--set`: `renamed: ClassVar = {"earlier": "current"}` in its section, a
  `gladstone.config.Config`. `build_config` does the rest.
- A field of a JSON file that a user's scripts may read: write it under both names for one release.

The line is a record of the logger `gladstone`, so that a program that uses the library decides where it goes; the
commands print it (`gladstone.commands.group`).
"""

import logging

LOGGER_NAME = "gladstone"


def announce(earlier: str, current: str) -> None:
    """Say that an earlier name was used."""
    logging.getLogger(LOGGER_NAME).warning(
        "%s has a new name: %s. The earlier one is accepted for one more release.", earlier, current
    )
