"""The load generator behind `hongyan bench`: clients as lean as they can be, which check all that they receive."""
