"""Many runs of one recipe: settings to try, trials, and the table that compares them."""
