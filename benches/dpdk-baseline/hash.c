/*
 * rte_hash with (VLAN, MAC address) as its 8-byte key, looked up in bursts of 32.
 *     hash EAL-OPTIONS -- ENTRIES VLANS
 * Per input line "MS" it runs for so long and prints: cycles per look-up.
 * The addresses, VLANs and the order of look-ups are those of the runner's own row.
 */
#include "common.h"
#include <rte_hash.h>
#include <rte_hash_crc.h>

#define LOOKUPS 65536

static uint64_t keys[LOOKUPS];

static uint64_t key_of(uint64_t i, uint64_t n_vlans) {
	uint64_t vid = n_vlans > 1 ? 1 + i % n_vlans : 0;
	/* fa:16:3e:xx:xx:xx as it lies in a little-endian word */
	uint64_t mac = 0xfaULL | 0x16ULL << 8 | 0x3eULL << 16 | (i >> 16 & 0xff) << 24 | (i >> 8 & 0xff) << 32
		| (i & 0xff) << 40;
	return vid << 48 | mac;
}

int main(int argc, char **argv) {
	int used = set_up_eal(argc, argv);
	if (argc - used < 3)
		return 2;
	uint64_t n_entries = strtoul(argv[used + 1], NULL, 10), n_vlans = strtoul(argv[used + 2], NULL, 10);
	struct rte_hash_parameters parameters = {
		.name = "h", .entries = n_entries < 8 ? 8 : n_entries * 2, .key_len = 8,
		.hash_func = rte_hash_crc, .socket_id = rte_socket_id(),
	};
	struct rte_hash *hash = rte_hash_create(&parameters);
	if (!hash)
		return 2;
	for (uint64_t i = 0; i < n_entries; i++) {
		uint64_t key = key_of(i, n_vlans);
		if (rte_hash_add_key_data(hash, &key, (void *)(uintptr_t)(i % 8)) != 0)
			return 2;
	}
	for (uint64_t i = 0; i < LOOKUPS; i++)
		keys[i] = key_of(i * 7919 % n_entries, n_vlans);
	puts("ready");
	for (unsigned ms; (ms = next_window_ms()) > 0;) {
		uint64_t n = 0, hits = 0, sum = 0, at = 0;
		uint64_t start = rte_get_tsc_cycles(), end = deadline_after_ms(ms);
		while (rte_get_tsc_cycles() < end) {
			for (int turn = 0; turn < 16; turn++) {
				/* As a classifier does: keys are gathered from headers first. */
				uint64_t gathered[BURST];
				const void *pointers[BURST];
				void *data[BURST];
				uint64_t mask;
				for (unsigned i = 0; i < BURST; i++) {
					gathered[i] = keys[at + i];
					pointers[i] = &gathered[i];
				}
				hits += rte_hash_lookup_bulk_data(hash, pointers, BURST, &mask, data);
				for (unsigned i = 0; i < BURST; i++)
					if (mask >> i & 1)
						sum += (uintptr_t)data[i];
				n += BURST;
				at = (at + BURST) & (LOOKUPS - 1);
			}
		}
		double cycles = (double)(rte_get_tsc_cycles() - start);
		if (hits != n)
			return 3;
		printf("%.3f %u\n", cycles / n, (unsigned)(sum & 1));
	}
	return 0;
}
