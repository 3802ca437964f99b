/* What the baseline programs share: commands from standard input, one line each; each answers with one line. */
#ifndef COMMON_H
#define COMMON_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_lcore.h>

#define BURST 32

static inline int set_up_eal(int argc, char **argv) {
	int used = rte_eal_init(argc, argv);
	if (used < 0) {
		fprintf(stderr, "rte_eal_init failed\n");
		exit(1);
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	return used;
}

/* Reads "MILLISECONDS"; 0 at the end of input. */
static inline unsigned next_window_ms(void) {
	char line[64];
	return fgets(line, sizeof line, stdin) ? (unsigned)strtoul(line, NULL, 10) : 0;
}

static inline uint64_t deadline_after_ms(unsigned ms) {
	return rte_get_tsc_cycles() + rte_get_tsc_hz() / 1000 * ms;
}

/* A thread's share of its CPU is read by whoever runs this program, by the names of lcore threads. */
#endif
