"""The picture: one view model and its renderers: page, terminal, Markdown, plots."""
