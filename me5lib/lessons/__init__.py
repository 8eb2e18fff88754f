"""What only the notebooks show and ask: lessons, exercises, figures, experiments, and the runs that execute them."""
