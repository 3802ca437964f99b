/*
 * A split ring's walk and nothing else: what one port with its addresses swapped costs when nothing is checked, counted, translated
 * by table or handed over. One region of guest memory, buffers of one descriptor, frames of 64 bytes: anything else
 * breaks it. It shows what is left of a packet's cost when a backend leaves out all it can: lines that travel,
 * copies, and the fence between what is used and the question whether the driver wants to know.
 *
 *     bare EAL-OPTIONS -- SOCKET
 *
 * Setting up is rte_vhost's; the walk is not. Input lines: "go", "stop", "stats", "quit". Each is answered with packets received,
 * 0, 0, and cycles of all turns that had packets, as pipeline.c does.
 */
#include "common.h"
#include <stdatomic.h>

#include <linux/virtio_ring.h>
#include <rte_launch.h>
#include <rte_prefetch.h>
#include <rte_vhost.h>

#define FRAME_BYTES 64
#define HEADER_BYTES 12
#define STRIDE 2240

/* A ring in our address space, and where we are in it. */
struct ring {
	volatile struct vring_desc *desc;
	volatile struct vring_avail *avail;
	volatile struct vring_used *used;
	uint16_t mask, next;
};

static struct ring to_guest, from_guest;
static uint64_t host_minus_guest;
static atomic_int running, attached;
static struct counter { uint64_t rx, cycles; } __rte_cache_aligned counter;
static uint8_t buffers[BURST][STRIDE] __rte_cache_aligned;

static inline uint8_t *host(uint64_t guest) { return (uint8_t *)(uintptr_t)(guest + host_minus_guest); }

/* Copies the next heads out; the lines their used elements go to are fetched meanwhile, as ours does it. */
static inline unsigned take_heads(struct ring *ring, unsigned most, uint16_t *heads) {
	uint16_t known = ring->avail->idx - ring->next;
	unsigned n = known < most ? known : most;
	atomic_signal_fence(memory_order_acquire);
	for (unsigned i = 0; i < n; i += 8)
		rte_prefetch0_write((void *)(uintptr_t)&ring->used->ring[(ring->next + i) & ring->mask]);
	for (unsigned i = 0; i < n; i++)
		heads[i] = ring->avail->ring[(ring->next + i) & ring->mask];
	return n;
}

/* Publishes `n` used elements, which have been written; true when the driver wants a call, which it never does here. */
static inline int publish(struct ring *ring, unsigned n) {
	ring->next += n;
	atomic_signal_fence(memory_order_release);
	ring->used->idx = ring->next;
	atomic_thread_fence(memory_order_seq_cst);
	return !(ring->avail->flags & VRING_AVAIL_F_NO_INTERRUPT);
}

static inline void swap_addresses(uint8_t *frame) {
	uint8_t dst[6];
	memcpy(dst, frame, 6);
	memcpy(frame, frame + 6, 6);
	memcpy(frame + 6, dst, 6);
}

static unsigned turn(void) {
	uint16_t heads[BURST];
	uint8_t *places[BURST];
	unsigned n = take_heads(&from_guest, BURST, heads);
	if (n == 0)
		return 0;
	for (unsigned i = 0; i < n; i++) {
		places[i] = host(from_guest.desc[heads[i]].addr) + HEADER_BYTES;
		rte_prefetch0(places[i]);
	}
	for (unsigned i = 0; i < n; i++) {
		memcpy(buffers[i] + 128, places[i], FRAME_BYTES);
		volatile struct vring_used_elem *used = &from_guest.used->ring[(from_guest.next + i) & from_guest.mask];
		used->id = heads[i];
		used->len = 0;
	}
	publish(&from_guest, n);
	for (unsigned i = 0; i < n; i++)
		swap_addresses(buffers[i] + 128);
	unsigned sent = take_heads(&to_guest, n, heads);
	for (unsigned i = 0; i < sent; i++) {
		places[i] = host(to_guest.desc[heads[i]].addr);
		rte_prefetch0(places[i]);
		rte_prefetch0_write(places[i] + HEADER_BYTES);
	}
	for (unsigned i = 0; i < sent; i++) {
		static const uint8_t header[HEADER_BYTES] = {[10] = 1};
		memcpy(places[i] + HEADER_BYTES, buffers[i] + 128, FRAME_BYTES);
		if (memcmp(places[i], header, HEADER_BYTES) != 0)
			memcpy(places[i], header, HEADER_BYTES);
		volatile struct vring_used_elem *used = &to_guest.used->ring[(to_guest.next + i) & to_guest.mask];
		used->id = heads[i];
		used->len = HEADER_BYTES + FRAME_BYTES;
	}
	publish(&to_guest, sent);
	return n;
}

static int run(void *unused) {
	(void)unused;
	while (running) {
		uint64_t start = rte_rdtsc();
		unsigned n = turn();
		if (n > 0) {
			counter.cycles += rte_rdtsc() - start;
			counter.rx += n;
		}
	}
	return 0;
}

static int find(int vid, uint16_t index, struct ring *ring) {
	struct rte_vhost_vring vring;
	uint16_t avail, used;
	if (rte_vhost_get_vhost_vring(vid, index, &vring) || rte_vhost_get_vring_base(vid, index, &avail, &used))
		return -1;
	rte_vhost_enable_guest_notification(vid, index, 0);
	*ring = (struct ring){vring.desc, vring.avail, vring.used, vring.size - 1, used};
	return 0;
}

static int new_device(int vid) {
	struct rte_vhost_memory *memory;
	if (rte_vhost_get_mem_table(vid, &memory) || memory->nregions != 1)
		return -1;
	host_minus_guest = memory->regions[0].host_user_addr - memory->regions[0].guest_phys_addr;
	free(memory);
	if (find(vid, 0, &to_guest) || find(vid, 1, &from_guest))
		return -1;
	attached = 1;
	return 0;
}

static void destroy_device(int vid) {
	(void)vid;
	running = attached = 0;
	rte_eal_mp_wait_lcore();
}

static const struct rte_vhost_device_ops ops = {.new_device = new_device, .destroy_device = destroy_device};

int main(int argc, char **argv) {
	int used = set_up_eal(argc, argv);
	if (argc - used < 2 || rte_lcore_count() != 2)
		return 2;
	const char *path = argv[used + 1];
	uint64_t split_only = 1ULL << VIRTIO_F_VERSION_1 | 1ULL << VHOST_USER_F_PROTOCOL_FEATURES;
	if (rte_vhost_driver_register(path, 0) || rte_vhost_driver_set_features(path, split_only)
	    || rte_vhost_driver_callback_register(path, &ops) || rte_vhost_driver_start(path))
		return 2;
	puts("ready");
	char line[64];
	while (fgets(line, sizeof line, stdin) && strcmp(line, "quit\n")) {
		if (!strcmp(line, "go\n") && !running && attached) {
			running = 1;
			rte_eal_remote_launch(run, NULL, rte_get_next_lcore(-1, 1, 0));
		} else if (!strcmp(line, "stop\n")) {
			running = 0;
			rte_eal_mp_wait_lcore();
		}
		printf("%lu 0 0 %lu\n", counter.rx, counter.cycles);
	}
	running = 0;
	rte_eal_mp_wait_lcore();
	return 0;
}
