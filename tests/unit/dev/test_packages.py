"""The list of Debian packages: its form, and what counts as missing."""

from pathlib import Path

import pytest

from duet_dev.errors import DevError
from duet_dev.packages import Package, missing_packages, read_packages


def test_the_projects_list_gives_each_package_a_sign_and_a_reason() -> None:
    packages = {package.name: package for package in read_packages()}
    assert packages["iproute2"].shown_by == "ip"
    assert all(package.reason for package in packages.values())


def test_a_line_without_reason_is_named(tmp_path: Path) -> None:
    listing = tmp_path / "packages.txt"
    listing.write_text("# heading\n\niproute2 ip\n")
    with pytest.raises(DevError, match=r"packages\.txt:3: write `package command-or-library  # why it is needed`"):
        read_packages(listing)


def test_missing_is_told_by_the_command() -> None:
    here, absent = Package("dash", "sh", "x"), Package("unheard-of", "no-such-command", "x")
    assert missing_packages([here, absent]) == [absent]


def test_a_package_without_commands_is_told_by_its_library() -> None:
    here, absent = Package("libc6", "libc.so.6", "x"), Package("unheard-of", "libunheard-of.so.1", "x")
    assert missing_packages([here, absent]) == [absent]
