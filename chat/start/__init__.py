"""Everything before the model: environment, options, config file, launch. Knows no conversation."""
