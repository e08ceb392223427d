/*
 * Instructions of the tensor cores and of asynchronous copies as functions (PTX ISA, "Warp-level
 * matrix instructions" and "Asynchronous copy"); sm_80 and later. Addresses of shared memory are
 * the 32-bit numbers that these instructions take.
 */
#ifndef TANDEM_EXEC_KERNELS_TENSOR_CUH
#define TANDEM_EXEC_KERNELS_TENSOR_CUH

#include <cuda_bf16.h>
#include <stdint.h>

__device__ inline uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* 16 bytes from global to shared memory, or zeros where there are none to read. */
__device__ inline void copy_16(uint32_t to, const void *from, bool there)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
}

/* The same of 4 bytes. */
__device__ inline void copy_4(uint32_t to, const void *from, bool there)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from),
                 "r"(there ? 4 : 0)
                 : "memory");
}

/* Waits for this thread's copies; a barrier must follow before other threads read them. */
__device__ inline void copy_wait()
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}

/* Four 8 x 8 matrices of bf16. Lane l gives the address of row l % 8 of matrix l / 8, and gets
 * columns 2 (l % 4), 2 (l % 4) + 1 of row l / 4 of each. */
__device__ inline void load_matrices(uint32_t (&r)[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

/* The same of the transposed matrices. */
__device__ inline void load_matrices_transposed(uint32_t (&r)[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

/* c[16, 8] += a[16, 16] * b[16, 8]; with g = lane / 4, t = 2 (lane % 4): c is (g, t), (g, t + 1),
 * (g + 8, t), (g + 8, t + 1); a is (g, t ..), (g + 8, t ..), (g, t + 8 ..), (g + 8, t + 8 ..);
 * b is (t .., g), (t + 8 .., g). */
__device__ inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Two floats rounded to bf16, the first in the lower half. */
__device__ inline uint32_t pack(float low, float high)
{
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

/* 2^x to 2 units in the last place; subnormal results are 0. */
__device__ inline float exp2_approximate(float x)
{
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

__device__ inline void shared_put(uint32_t to, uint32_t value)
{
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(value) : "memory");
}

__device__ inline uint4 shared_get_16(uint32_t from)
{
    uint4 r;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "r"(from)
                 : "memory");
    return r;
}

__device__ inline float2 shared_get_2(uint32_t from)
{
    float2 r;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(r.x), "=f"(r.y) : "r"(from) : "memory");
    return r;
}

#endif
