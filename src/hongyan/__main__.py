"""`python -m hongyan`: the same as the `hongyan` command."""

from hongyan.cli.main import main

if __name__ == "__main__":
    main()
