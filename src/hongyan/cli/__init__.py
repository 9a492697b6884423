"""The hongyan command."""
