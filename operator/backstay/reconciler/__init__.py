"""The loop: the only code that awaits ports. It looks, decides by calling core, writes down, and only then acts."""
