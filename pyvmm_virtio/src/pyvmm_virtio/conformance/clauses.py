"""The clauses as data: where each stands, what it says in a few words, and how it is known to hold."""

from __future__ import annotations

from pyvmm_virtio.constants import device_ids as ids

Q = "tests/virtio/test_queue.py::test_"
T = "tests/virtio/test_transport.py::test_"
N = "tests/virtio/test_net.py::test_"
ATTACK = "tests/hostile/test_virtio_fuzz.py::test_nothing_comes_out_and_nothing_is_overwritten"
ONE_STEP = "a reset is over when the write that begins it returns, so no driver sees it under way"


class Clause:
    """One MUST or MUST NOT.

    Attributes:
        section: of VIRTIO 1.3.
        text: what it says, in short.
        check: the name of the check in `checks` that drives a device to see it, or "".
        test: the test of this project that shows it, or "".
        why: why it does not apply, or "".
        device_type: the type of device it is about, or 0 for all.
    """

    __slots__ = ("check", "device_type", "section", "test", "text", "why")

    def __init__(
        self, section: str, text: str, *, check: str = "", test: str = "", why: str = "", device_type: int = 0
    ) -> None:
        self.section = section
        self.text = text
        self.check = check
        self.test = test
        self.why = why
        self.device_type = device_type

    def __repr__(self) -> str:
        return f"<Clause {self.section}: {self.text}>"


def clauses_for(device_type: int) -> list[Clause]:
    """Return the clauses that concern a type of device."""
    return [clause for clause in CLAUSES if clause.device_type in (0, device_type)]


C = Clause
CORE = (
    C("2.1.2", "consumes no buffer and notifies nobody before DRIVER_OK", check="quiet_before_driver_ok"),
    C("2.1.2", "notifies of a changed configuration after it set DEVICE_NEEDS_RESET", check="needs_reset_is_told"),
    C("2.2.2", "offers no feature without those it needs", check="everything_offered_works"),
    C("2.2.2", "accepts a valid subset of what it offers, or does not set FEATURES_OK", check="subsets_of_features"),
    C("2.2.2", "does not set FEATURES_OK for a feature it did not offer", check="unoffered_features_are_refused"),
    C("2.2.2", "offers nothing that it would not support", check="everything_offered_works"),
    C("2.4.1", "has status 0 after a reset", check="reset_ends_everything"),
    C("2.4.1", "sends no notification and touches no queue after a reset", check="reset_ends_everything"),
    C("2.5.2", "lets its configuration be read before FEATURES_OK", check="configuration_can_be_read_early"),
    C("2.5", "shows another generation when what was read has changed", check="generation_changes"),
    C("2.6.1.1.1", "executes nothing of a queue that was reset, nor notifies for it", check="queue_reset"),
    C("2.6.1.1.1", "has every state of that queue as it was at first", check="queue_reset"),
    C("2.6.1.2.1", "takes what the driver says of the queue when it enables it again", check="queue_reset"),
    C(
        "3.1.1",
        "works when several steps of the status are taken in one write",
        test=T + "steps_must_come_in_order",
    ),
    C("2.10.2", "puts nothing into shared memory that controls it", why="what is in it is the machine's choice"),
    C("2.12.1.2", "carries out group administration commands", why="ADMIN_VQ is not offered"),
    C("2.13.1", "takes administration commands of any length", why="ADMIN_VQ is not offered"),
    C("6.2", "offers VERSION_1", check="offers_version_1"),
    C("6.2", "uses buffers in order, with IN_ORDER", check="in_order"),
    C("6.2", "offers no SR_IOV without its capability", check="offers_version_1"),
    C("6.2", "translates addresses or not as ACCESS_PLATFORM says", test=T + "an_iommu_is_insisted_on"),
)
SPLIT = (
    C("2.7.4.1", "assumes nothing of how a request is laid out in descriptors", check="any_layout"),
    C("2.7.5.1", "writes to no readable buffer", check="readable_buffers_stay"),
    C("2.7.5.1", "writes to no descriptor", check="descriptors_stay"),
    C("2.7.5.3.2", "ignores WRITE in a descriptor that refers to a table", check="indirect_tables"),
    C("2.7.5.3.2", "handles direct descriptors followed by one that refers to a table", check="indirect_tables"),
    C("2.7.7.2", "without EVENT_IDX ignores used_event, and notifies where flags is 0", check="suppression_by_flags"),
    C(
        "2.7.7.2",
        "with EVENT_IDX ignores flags, and notifies where used_event is reached",
        check="suppression_by_event",
    ),
    C("2.7.8.2", "sets len before the used index", test=Q + "batches_appear_at_once"),
    C("2.7.8.2", "wrote as many bytes as len says, from the first writable on", check="lengths_are_honest"),
    C("2.7.10.2", "without EVENT_IDX sets the used ring's flags to 0 or 1", check="used_flags"),
    C("2.7.10.2", "with EVENT_IDX sets the used ring's flags to 0", check="used_flags"),
    C("2.7.10.2", "handles notifications that have no reason", check="spurious_notifications"),
)
PACKED = (
    C("2.8.12", "begins with descriptors in the order of the ring", check="order_of_the_ring"),
    C("2.8.12", "writes used descriptors in the order in which they complete", check="order_of_the_ring"),
    C("2.8.15", "writes to no readable buffer", check="readable_buffers_stay"),
    C("2.8.15", "uses no descriptor before its AVAIL mark has changed", check="marks_of_another_turn"),
    C("2.8.15", "changes no descriptor after it marked it used", check="descriptors_stay"),
    C("2.8.18", "uses the descriptors of a list in their order", check="any_layout"),
    C("2.8.7", "ignores all flags but WRITE in a table, and WRITE in what refers to it", check="indirect_tables"),
)
MMIO = (
    C("4.2.2.1", "MagicValue is 0x74726976", check="mmio_identity"),
    C("4.2.2.1", "Version is 2", check="mmio_identity"),
    C("4.2.2.1", "shows an event in InterruptStatus until it is acknowledged", check="mmio_events"),
    C("4.2.2.1", "shows no event that did not take place", check="mmio_events"),
    C("4.2.2.1", "clears InterruptStatus and QueueReady at a reset", check="mmio_events"),
    C(
        "4.2.2.1",
        "changes ConfigGeneration where a driver might see something inconsistent",
        check="generation_changes",
    ),
    C("4.2.2.1", "touches no queue whose QueueReady is 0", check="disabled_queues_rest"),
    C("4.2.2.1", "QueueReset is 0 after a reset, after enabling and after the queue's reset", check="queue_reset"),
    C("4.2.2.1", "resets a queue when 1 is written to QueueReset, and shows 0 in both", check="queue_reset"),
    C("4.2.2.1", "shows 1 in QueueReset while the reset lasts", why=ONE_STEP),
    C("4.2.2", "says -1 for a shared memory region that is none", check="shared_memory_is_bounded"),
)
PCI = (
    C("4.1.1", "is a PCI function as PCI specifies", test="tests/device/test_pci.py::test_capabilities_form_a_list"),
    C("4.1.2.1", "has vendor 0x1af4 and device 0x1040 plus its type", check="pci_identity"),
    C("4.1.3.2", "allows the halves of a 64-bit field to be reached one by one", check="pci_fields"),
    C("4.1.4.2", "counts all extra data in cap_len", check="pci_capabilities"),
    C("4.1.4.3.1", "has a common configuration, aligned to 4 bytes", check="pci_capabilities"),
    C("4.1.4.3.1", "shows offered features for any device_feature_select, 0 beyond", check="pci_fields"),
    C("4.1.4.3.1", "shows what the driver wrote in driver_feature", check="pci_fields"),
    C("4.1.4.3.1", "shows another config_generation after a change", check="generation_changes"),
    C("4.1.4.3.1", "resets when 0 is written to device_status, and shows 0", check="reset_ends_everything"),
    C("4.1.4.3.1", "queue_enable and queue_reset are 0 after a reset", check="reset_ends_everything"),
    C("4.1.4.3.1", "resets a queue when 1 is written to queue_reset, and shows 0 in both", check="queue_reset"),
    C("4.1.4.3.1", "shows 1 in queue_reset while the reset lasts", why=ONE_STEP),
    C("4.1.4.3.1", "queue_size is 0 for a queue that does not exist", check="pci_fields"),
    C("4.1.4.3.1", "queue_size is 0 or a power of two, without RING_PACKED", check="pci_fields"),
    C("4.1.4.3.1", "numbers administration queues beyond the others", why="ADMIN_VQ is not offered"),
    C(
        "4.1.4.4.1",
        "has a notification area, aligned, with a multiplier that is a power of two",
        check="pci_capabilities",
    ),
    C("4.1.4.4.1", "has room in it for every queue", check="pci_capabilities"),
    C("4.1.4.5.1", "has an ISR status", check="pci_capabilities"),
    C("4.1.4.5.1", "sets its configuration bit before notifying of one", check="pci_isr"),
    C("4.1.4.5.1", "sets its queue bit before notifying of one, without MSI-X", check="pci_isr"),
    C("4.1.4.5.1", "shows the status in the PCI header, without MSI-X", check="pci_isr"),
    C("4.1.4.5.1", "ISR status is 0 after it was read", check="pci_isr"),
    C("4.1.4.6.1", "has a device configuration, aligned to 4 bytes, where the type has one", check="pci_capabilities"),
    C("4.1.4.7.1", "shared memory lies within its BAR and has an id of its own", check="shared_memory_is_bounded"),
    C("4.1.4.8.1", "says another vendor than 0x1af4 in vendor data", why="there is no vendor data capability"),
    C("4.1.4.9.1", "has a window in configuration space that carries accesses out", check="pci_window"),
    C("4.1.5.1.2.1", "says how many vectors it supports in MSI-X's Table Size", check="pci_vectors"),
    C("4.1.5.1.2.1", "supports any event on any vector, and on none", check="pci_vectors"),
    C("4.1.5.1.2.1", "shows the vector of an event, or NO_VECTOR where mapping failed", check="pci_vectors"),
    C("4.1.5.1.2.1", "has no event mapped after a reset", check="pci_vectors"),
    C("4.1.5.3.1", "interrupts for no queue that has NO_VECTOR, with MSI-X", check="pci_vectors"),
    C("4.1.5.4.1", "does not interrupt for the configuration with NO_VECTOR", check="pci_vectors"),
)
ZONED = "ZONED is not offered"


def _of(device_type: int, *clauses: Clause) -> tuple[Clause, ...]:
    for clause in clauses:
        clause.device_type = device_type
    return clauses


BLOCK = _of(
    ids.VIRTIO_ID_BLOCK,
    C("5.2.5.2", "offers FLUSH where it offers CONFIG_WCE", check="block_features"),
    C("5.2.5.2", "writeback is 0 where CONFIG_WCE is negotiated without FLUSH", check="block_writeback"),
    C("5.2.5.2", "padding in the configuration is 0", check="block_features"),
    C("5.2.5.2", "describes its zones", why=ZONED),
    C("5.2.6.2", "refuses writes with IOERR and writes nothing, read-only", check="block_read_only"),
    C("5.2.6.2", "answers UNSUPP to unknown flags of discard and write zeroes", check="block_ranges"),
    C("5.2.6.2", "answers UNSUPP to discard with the unmap flag", check="block_ranges"),
    C("5.2.6.2", "reads zeros after write zeroes", check="block_ranges"),
    C(
        "5.2.6.2",
        "has stable writes committed before it answers",
        test="tests/virtio/test_durability.py::test_killed_at_random",
    ),
    C("5.2.6.2", "offers LIFETIME only where that means something", why="LIFETIME is not offered"),
    C("5.2.6.2", "answers UNSUPP to zone requests, without ZONED", check="block_unknown_requests"),
    C("5.2.6.2", "changes states of zones", why=ZONED),
)
NET = _of(
    ids.VIRTIO_ID_NET,
    C("5.1.4.1", "max_virtqueue_pairs is 1 to 0x8000, with MQ", check="net_configuration"),
    C("5.1.4.1", "mtu is 68 to 65535 and stays, with MTU", check="net_configuration"),
    C(
        "5.1.4.1",
        "gives the driver no frame beyond mtu, unless it is to be segmented",
        test=N + "frames_beyond_the_mtu",
    ),
    C("5.1.4.1", "forwards frames of up to mtu as they are", test=N + "frames_beyond_the_mtu"),
    C("5.1.4.1", "rss_max_key_size and table length are large enough", why="neither RSS nor HASH_REPORT is offered"),
    C("5.1.4.1", "speed and duplex have values that exist", why="SPEED_DUPLEX is not offered"),
    C("5.1.6.2.2", "ignores flags it does not know, and hdr_len", check="net_odd_headers"),
    C(
        "5.1.6.2.2",
        "uses csum_start and csum_offset, and trusts checksums, only with NEEDS_CSUM",
        why="it calculates nothing: the back end takes the header as it is, and gets an empty one without offloads",
    ),
    C("5.1.6.3.2", "num_buffers counts the buffers of a packet, and is 1 without MRG_RXBUF", check="net_receives"),
    C("5.1.6.3.2", "uses one buffer for a packet without MRG_RXBUF", check="net_receives"),
    C(
        "5.1.6.4.1",
        "flags is 0 without GUEST_CSUM, gso_type NONE without GUEST_TSO4 and the like",
        check="net_receives",
    ),
    C("5.1.6.4.1", "fills all buffers of a packet but the last, and gives them back together", check="net_receives"),
    C(
        "5.1.6.4.1",
        "describes checksums and segments as negotiated",
        test=N + "headers_pass_through_where_offloads_were_negotiated",
    ),
    C("5.1.6.4.3", "calculates hashes", why="neither RSS nor HASH_REPORT is offered"),
    C("5.1.6.5.1.1", "supports the modes of CTRL_RX", check="net_commands"),
    C("5.1.6.5.2.1", "has an empty table of addresses after a reset", check="net_receives"),
    C("5.1.6.5.2.1", "has done a command before it answers", check="net_commands"),
    C("5.1.6.5.3.1", "accepts packets of all VLANs without CTRL_VLAN", check="net_receives"),
    C("5.1.6.5.3.1", "accepts packets of the VLANs that the driver has added", check="net_commands"),
    C("5.1.6.5.4.2", "clears ANNOUNCE in status before it answers ANNOUNCE_ACK", check="net_commands"),
    C("5.1.6.5.6.2", "queues packets on receiveq1 alone until told otherwise", check="net_receives"),
    C("5.1.6.5.6.2", "queues nothing on receive queues beyond virtqueue_pairs", test=N + "queue_pairs"),
    C("5.1.6.5.6.2", "drops packets while all receive queues are being reset", why=ONE_STEP),
    C("5.1.6.5.7.3", "directs packets by their hashes", why="RSS is not offered"),
    C("5.1.6.5.9.6", "coalesces notifications as told", why="NOTF_COAL is not offered"),
)
CONSOLE = _of(
    ids.VIRTIO_ID_CONSOLE,
    C("5.3.5.1", "allows a write to emerg_wr before it was set up", check="console_emergency"),
    C("5.3.6.2.1", "adds no port twice, nor beyond max_nr_ports", check="console_ports"),
    C("5.3.6.2.1", "removes no port that was not added", why="ports are removed by the program; what it adds it knows"),
)
ENTROPY = _of(
    ids.VIRTIO_ID_RNG,
    C("5.4.6.2", "places one or more random bytes into each buffer", check="entropy"),
)
DRIVERS = (
    C("2.1.1", "the driver clears no bit of the status", test=T + "steps_must_come_in_order"),
    C("2.2.1", "the driver accepts nothing that was not offered", test=T + "negotiation"),
    C("2.7.5.2", "the driver makes no loop", test=Q + "loop"),
    C("2.7.5.2", "the driver makes no chain of more than 2**32 bytes", test=Q + "at_most_two_to_the_32_bytes"),
    C("2.7.4.2", "the driver places readable buffers first", test=Q + "order_of_buffers_is_an_option"),
    C(
        "2.7.5.3.1",
        "the driver sets INDIRECT only where negotiated, never with NEXT or in a table",
        test=Q + "indirect",
    ),
    C(
        "2.7.5.3.1",
        "the driver makes no chain longer than the queue",
        test=Q + "the_limit_of_a_chain_is_the_queue_size_indirect_or_not",
    ),
    C(
        "2.8.16",
        "the driver changes no descriptor that is not used yet, nor takes its id",
        test=Q + "packed_buffer_id_twice_and_descriptors_in_use",
    ),
    C(
        "4.2.2.2",
        "the driver uses aligned words for registers",
        test=T + "registers_take_aligned_words_only",
    ),
    C(
        "4.2.2.2",
        "the driver changes no queue that is enabled",
        test=T + "queues_cannot_be_changed_while_enabled_nor_before_features",
    ),
    C(
        "4.1.4.3.2",
        "the driver writes no 0 to queue_enable",
        test=T + "the_common_configuration_in_other_widths",
    ),
    C("6.1", "the driver accepts VERSION_1", test=T + "negotiation"),
    C("2 to 6", "whatever else a driver must not do, nothing but its buffers is written", test=ATTACK),
)
"""What is demanded of drivers, and what a device does about those that do not care."""

CLAUSES = (*CORE, *SPLIT, *PACKED, *MMIO, *PCI, *BLOCK, *NET, *CONSOLE, *ENTROPY, *DRIVERS)
