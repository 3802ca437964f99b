/*
 * The components SPP wires for one VM, on libdpdk: a wire and a VM, both vhost ports, between them
 *
 *     wire -> classifier (rte_hash) -> rte_ring -> forward -> VM
 *     wire <- merge                 <- rte_ring <- forward <- VM
 *
 *     pipeline EAL-OPTIONS --vdev net_vhost0,iface=WIRE --vdev net_vhost1,iface=VM -- MAC
 *
 * With four worker lcores each component has its own, with one it runs all four in turn. Workers that
 * share a CPU yield it when they have nothing to do. Input lines: "go", "stop", "stats", "quit". Each is answered with:
 * packets received on the wire's port, on the VM's port, drops, and cycles of all turns that had packets.
 */
#include "common.h"
#include <sched.h>

#include <rte_ethdev.h>
#include <rte_ether.h>
#include <rte_hash.h>
#include <rte_hash_crc.h>
#include <rte_launch.h>
#include <rte_mbuf.h>
#include <rte_prefetch.h>
#include <rte_ring.h>

enum { WIRE, VM, PORTS };
#define RING_SLOTS 1024
#define DESCRIPTORS 256

static struct rte_hash *table;
static struct rte_ring *to_vm, *to_wire;
static volatile int running;
static int yields;

/* One writer each, on lines of their own. */
static struct counter { uint64_t rx, drops, cycles; } __rte_cache_aligned counters[4];

static inline void drop(struct counter *counter, struct rte_mbuf **packets, unsigned n) {
	if (n > 0) {
		rte_pktmbuf_free_bulk(packets, n);
		counter->drops += n;
	}
}

static unsigned classify(void) {
	struct counter *counter = &counters[0];
	struct rte_mbuf *packets[BURST], *known[BURST];
	uint64_t keys[BURST], mask = 0;
	const void *pointers[BURST];
	void *data[BURST];
	unsigned n = rte_eth_rx_burst(WIRE, 0, packets, BURST), n_known = 0;
	if (n == 0)
		return 0;
	counter->rx += n;
	for (unsigned i = 0; i < n; i++)
		rte_prefetch0(rte_pktmbuf_mtod(packets[i], void *));
	for (unsigned i = 0; i < n; i++) {
		const struct rte_ether_hdr *header = rte_pktmbuf_mtod(packets[i], const struct rte_ether_hdr *);
		uint64_t key = 0;
		memcpy(&key, &header->dst_addr, 6);
		if (header->ether_type == rte_cpu_to_be_16(RTE_ETHER_TYPE_VLAN)) {
			const struct rte_vlan_hdr *vlan = (const struct rte_vlan_hdr *)(header + 1);
			key |= (uint64_t)(rte_be_to_cpu_16(vlan->vlan_tci) & 0xfff) << 48;
		}
		keys[i] = key;
		pointers[i] = &keys[i];
	}
	rte_hash_lookup_bulk_data(table, pointers, n, &mask, data);
	for (unsigned i = 0; i < n; i++) {
		if (mask >> i & 1)
			known[n_known++] = packets[i];
		else
			drop(counter, &packets[i], 1);
	}
	unsigned sent = rte_ring_sp_enqueue_burst(to_vm, (void **)known, n_known, NULL);
	drop(counter, known + sent, n_known - sent);
	return n;
}

static unsigned from_ring(struct rte_ring *ring, uint16_t port, struct counter *counter) {
	struct rte_mbuf *packets[BURST];
	unsigned n = rte_ring_sc_dequeue_burst(ring, (void **)packets, BURST, NULL);
	if (n > 0) {
		unsigned sent = rte_eth_tx_burst(port, 0, packets, n);
		drop(counter, packets + sent, n - sent);
	}
	return n;
}

static unsigned forward_to_vm(void) { return from_ring(to_vm, VM, &counters[1]); }

static unsigned merge(void) { return from_ring(to_wire, WIRE, &counters[3]); }

static unsigned forward_from_vm(void) {
	struct counter *counter = &counters[2];
	struct rte_mbuf *packets[BURST];
	unsigned n = rte_eth_rx_burst(VM, 0, packets, BURST);
	if (n > 0) {
		counter->rx += n;
		unsigned sent = rte_ring_sp_enqueue_burst(to_wire, (void **)packets, n, NULL);
		drop(counter, packets + sent, n - sent);
	}
	return n;
}

static unsigned (*const components[4])(void) = {classify, forward_to_vm, forward_from_vm, merge};

static inline unsigned turn(unsigned component) {
	uint64_t start = rte_rdtsc();
	unsigned n = components[component]();
	if (n > 0)
		counters[component].cycles += rte_rdtsc() - start;
	return n;
}

static int run(void *component) {
	while (running)
		if (turn((uintptr_t)component) == 0 && yields)
			sched_yield();
	return 0;
}

static int run_all(void *unused) {
	(void)unused;
	while (running)
		for (unsigned i = 0; i < 4; i++)
			turn(i);
	return 0;
}

static void launch(void) {
	running = 1;
	unsigned lcore, i = 0;
	RTE_LCORE_FOREACH_WORKER(lcore) {
		if (yields)
			rte_eal_remote_launch(run, (void *)(uintptr_t)i, lcore);
		else
			rte_eal_remote_launch(run_all, NULL, lcore);
		if (++i == (yields ? 4 : 1))
			break;
	}
}

static int open_port(uint16_t port, struct rte_mempool *pool) {
	struct rte_eth_conf conf = {0};
	return rte_eth_dev_configure(port, 1, 1, &conf)
		|| rte_eth_rx_queue_setup(port, 0, DESCRIPTORS, rte_socket_id(), NULL, pool)
		|| rte_eth_tx_queue_setup(port, 0, DESCRIPTORS, rte_socket_id(), NULL)
		|| rte_eth_dev_start(port);
}

int main(int argc, char **argv) {
	int used = set_up_eal(argc, argv);
	struct rte_ether_addr mac;
	if (argc - used < 2 || rte_ether_unformat_addr(argv[used + 1], &mac) || rte_eth_dev_count_avail() != PORTS)
		return 2;
	unsigned workers = rte_lcore_count() - 1;
	if (workers != 1 && workers != 4)
		return 2;
	yields = workers == 4;
	struct rte_mempool *pool = rte_pktmbuf_pool_create("p", 8191, 256, 0, RTE_MBUF_DEFAULT_BUF_SIZE, rte_socket_id());
	struct rte_hash_parameters parameters = {
		.name = "t", .entries = 1024, .key_len = 8, .hash_func = rte_hash_crc, .socket_id = rte_socket_id(),
	};
	table = rte_hash_create(&parameters);
	to_vm = rte_ring_create("v", RING_SLOTS, rte_socket_id(), RING_F_SP_ENQ | RING_F_SC_DEQ);
	to_wire = rte_ring_create("w", RING_SLOTS, rte_socket_id(), RING_F_SP_ENQ | RING_F_SC_DEQ);
	if (!pool || !table || !to_vm || !to_wire || open_port(WIRE, pool) || open_port(VM, pool))
		return 2;
	uint64_t key = 0;
	memcpy(&key, &mac, 6);
	if (rte_hash_add_key_data(table, &key, NULL))
		return 2;
	puts("ready");
	char line[64];
	while (fgets(line, sizeof line, stdin) && strcmp(line, "quit\n")) {
		if (!strcmp(line, "go\n") && !running)
			launch();
		else if (!strcmp(line, "stop\n")) {
			running = 0;
			rte_eal_mp_wait_lcore();
		}
		uint64_t drops = 0, cycles = 0;
		for (unsigned i = 0; i < 4; i++) {
			drops += counters[i].drops;
			cycles += counters[i].cycles;
		}
		printf("%lu %lu %lu %lu\n", counters[0].rx, counters[2].rx, drops, cycles);
	}
	running = 0;
	rte_eal_mp_wait_lcore();
	return 0;
}
