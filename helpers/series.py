"""The old address of ``helpers.lesson``, and of ``python -m helpers.maintain.series``."""

from helpers.lesson import TEACHER, Lesson, open_lesson  # noqa: F401

if __name__ == "__main__":
    from helpers.maintain.series import main

    main()
