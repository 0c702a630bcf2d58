"""`python -m mobilenets` is the command line."""

from mobilenets.cli.main import main

if __name__ == "__main__":
    main()
