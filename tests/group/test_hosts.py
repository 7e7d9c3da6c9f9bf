"""Which hosts there are comes from the environment, checked; the interface is that of the route to node 0."""

from __future__ import annotations

import pytest

from dist.errors import UsageError
from dist.group.hosts import Hosts, check_interfaces, host_name, interface_variables, interface_with, own_address

TWO = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}
MISSING = "no-such-host.invalid"


def test_one_host_is_the_default_and_needs_nothing():
    assert Hosts.from_environment({}) == Hosts()
    assert Hosts.from_environment({"NNODES": "1", "NODE_RANK": "x", "MASTER_PORT": "y"}) == Hosts()


def test_several_hosts_meet_at_node_0():
    hosts = Hosts.from_environment(TWO)
    assert hosts == Hosts(nodes=2, node=1, address="10.0.0.1", port=1234)
    assert hosts.meeting_point == "10.0.0.1:1234"
    assert Hosts.from_environment({**TWO, "MASTER_PORT": ""}).port == 29500


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"NNODES": "two"}, "NNODES cannot be 'two'. It is the number of hosts: 1 to 9999."),
        ({"NNODES": "2:4"}, "NNODES cannot be '2:4'."),
        ({"NNODES": "0"}, "NNODES cannot be '0'."),
        ({"NODE_RANK": "2"}, "NODE_RANK cannot be '2'. It is this host's number, from 0 to NNODES - 1: 0 to 1."),
        ({"NODE_RANK": ""}, "NODE_RANK is not set."),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT cannot be '70000'. It is a free port of node 0: 1 to 65535."),
        ({"MASTER_ADDR": " "}, "MASTER_ADDR is not set. With NNODES=2 the hosts meet at node 0. Set it to"),
    ],
)
def test_what_cannot_be_is_named(changed, text):
    with pytest.raises(UsageError) as caught:
        Hosts.from_environment({**TWO, **changed})
    assert str(caught.value).startswith(text)


def test_an_address_that_is_none_is_named():
    with pytest.raises(UsageError, match=f"MASTER_ADDR={MISSING} cannot be resolved"):
        own_address(MISSING, is_master=False)


@pytest.mark.parametrize("variable", ["GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"])
def test_an_interface_that_does_not_exist_is_named(variable):
    with pytest.raises(UsageError, match=rf"{variable} cannot be 'lo,eth77'. This host has no interface eth77;"):
        check_interfaces({variable: "lo,eth77"})
    check_interfaces({variable: "lo"})
    check_interfaces({"NCCL_SOCKET_IFNAME": "^eth77"})


def test_the_loopback_interface_is_known_by_its_address():
    assert interface_with("127.0.0.1") == "lo"
    assert own_address("127.0.0.1", is_master=True) == "127.0.0.1"
    # A name of one's own that stands for a loopback address says nothing of how others come here.
    assert own_address("localhost", is_master=True) in ("127.0.0.1", "::1")


def test_ranks_of_one_host_listen_on_the_loopback_interface_only():
    both = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    assert interface_variables({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}) == both
    chosen = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "eth0"}
    assert interface_variables(chosen) == {"NCCL_SOCKET_IFNAME": "lo"}
    assert interface_variables({}) == {}


def test_ranks_of_several_hosts_take_the_interface_on_the_way_to_node_0():
    ranks = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1", "MASTER_ADDR": "127.0.0.1"}
    assert interface_variables(ranks) == {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    assert host_name()
