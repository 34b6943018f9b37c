"""From an adapter to weights that any engine serves: merge, prove, describe."""
