/* Answers the CPUID instructions that without_vnni.py turned into breakpoints, leaving out what multiplies bytes without saturation. */

#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

static int without_avx512;

static void answer(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)info;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    uint32_t leaf = registers[REG_RAX], subleaf = registers[REG_RCX];
    uint32_t a = leaf, b, c = subleaf, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    if (leaf == 7 && subleaf == 0) {
        c &= ~(1u << 11);                              /* AVX512_VNNI */
        d &= ~(1u << 22 | 1u << 24 | 1u << 25);        /* AMX_BF16, AMX_TILE, AMX_INT8 */
        if (without_avx512) {
            b &= ~(1u << 16 | 1u << 17 | 1u << 21 | 1u << 28 | 1u << 30 | 1u << 31);
            c &= ~(1u << 1 | 1u << 6 | 1u << 12 | 1u << 14);
        }
    }
    if (leaf == 7 && subleaf == 1) {
        a &= ~(1u << 4 | 1u << 5);                     /* AVX_VNNI, AVX512_BF16 */
        d &= ~(1u << 4 | 1u << 5 | 1u << 10);          /* AVX_VNNI_INT8, AVX_NE_CONVERT, AVX_VNNI_INT16 */
    }
    registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
}

__attribute__((constructor)) static void install(void) {
    without_avx512 = getenv("WITHOUT_AVX512") != NULL;
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = answer;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGTRAP, &action, NULL);
}
