"""One module per `toonstream NAME` command: `run(words) -> exit code`, its own parser, its own --help."""
