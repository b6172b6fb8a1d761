"""The short form of `make chaos`: one fault of each kind, and the bits of runs that were never disturbed."""

import sys

import pytest

from tests.chaos import chaos

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="faults are found by /proc")


@pytest.mark.thorough
def test_a_disturbed_run_ends_in_the_bits_of_an_undisturbed_one(tmp_path):
    """SIGKILL, a full disk, a killed data worker and half a checkpoint, in one run."""
    tally = chaos(tmp_path, ["kill", "disk", "worker", "truncate"], [])
    print("\n".join(tally.lines()))
    assert list(tally.equal.values()) == [True]
    assert sum(tally.faults.values()) == 4


@pytest.mark.thorough
def test_a_run_of_two_hosts_of_which_one_is_killed_and_one_is_told_to_go(tmp_path):
    tally = chaos(tmp_path, [], ["host", "notice"])
    print("\n".join(tally.lines()))
    assert list(tally.equal.values()) == [True]
