/*
 * rte_ring, single producer and single consumer, between the main lcore (consumer) and the worker lcore.
 *     ring EAL-OPTIONS -- SLOTS ELEMENT_BYTES BURST
 * Per input line "MS" it runs for so long and prints: elements per second.
 */
#include "common.h"
#include <rte_launch.h>
#include <rte_ring.h>
#include <rte_ring_elem.h>

struct element16 { uint64_t a, b; };

static struct rte_ring *ring;
static unsigned burst, element_bytes;
static volatile int stop;

static int produce(void *unused) {
	(void)unused;
	struct element16 elements[BURST];
	for (unsigned i = 0; i < BURST; i++)
		elements[i] = (struct element16){i, i};
	while (!stop) {
		if (element_bytes == 16)
			rte_ring_sp_enqueue_burst_elem(ring, elements, 16, burst, NULL);
		else
			rte_ring_sp_enqueue_burst_elem(ring, elements, 8, burst, NULL);
	}
	return 0;
}

int main(int argc, char **argv) {
	int used = set_up_eal(argc, argv);
	if (argc - used < 4)
		return 2;
	unsigned slots = atoi(argv[used + 1]);
	element_bytes = atoi(argv[used + 2]);
	burst = atoi(argv[used + 3]);
	ring = rte_ring_create_elem("r", element_bytes, slots, rte_socket_id(), RING_F_SP_ENQ | RING_F_SC_DEQ);
	unsigned worker = rte_get_next_lcore(-1, 1, 0);
	if (!ring || burst == 0 || burst > BURST || worker == RTE_MAX_LCORE)
		return 2;
	puts("ready");
	for (unsigned ms; (ms = next_window_ms()) > 0;) {
		struct element16 out[BURST];
		uint64_t n = 0, sum = 0;
		stop = 0;
		rte_eal_remote_launch(produce, NULL, worker);
		uint64_t start = rte_get_tsc_cycles(), end = deadline_after_ms(ms);
		while (rte_get_tsc_cycles() < end) {
			for (int i = 0; i < 64; i++) {
				unsigned got = element_bytes == 16
					? rte_ring_sc_dequeue_burst_elem(ring, out, 16, burst, NULL)
					: rte_ring_sc_dequeue_burst_elem(ring, out, 8, burst, NULL);
				for (unsigned k = 0; k < got; k++)
					sum += element_bytes == 16 ? out[k].a : ((uint64_t *)out)[k];
				n += got;
			}
		}
		double seconds = (double)(rte_get_tsc_cycles() - start) / rte_get_tsc_hz();
		stop = 1;
		rte_eal_wait_lcore(worker);
		printf("%.0f %u\n", n / seconds, (unsigned)(sum & 1));
	}
	return 0;
}
