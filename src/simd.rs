//! One loop, several instruction sets: the body is compiled once for each, and the widest that the processor has
//! is called. `QTOOL_SIMD=scalar|avx2|avx512` asks for a narrower one, for tests.
//!
//! Bodies only use operations that IEEE 754 defines to the bit, so every path computes the same: also `mul_add`, which is slow
//! where the processor has no fused multiply-add.

use std::sync::OnceLock;

/// An instruction set that loops are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InstructionSet {
    /// What every processor of the target has: SSE2 on x86-64, NEON on aarch64.
    Baseline,
    /// 32-byte registers on x86-64, and fused multiply-adds.
    Avx2,
    /// 64-byte registers on x86-64 (F, BW, DQ and VL).
    Avx512,
}

impl InstructionSet {
    /// Those that loops are compiled for on this kind of processor.
    pub const ALL: &'static [InstructionSet] = if cfg!(target_arch = "x86_64") {
        &[InstructionSet::Baseline, InstructionSet::Avx2, InstructionSet::Avx512]
    } else {
        &[InstructionSet::Baseline]
    };

    /// As `QTOOL_SIMD` and `--version` spell it.
    pub fn name(self) -> &'static str {
        match self {
            InstructionSet::Baseline => "scalar",
            InstructionSet::Avx2 => "avx2",
            InstructionSet::Avx512 => "avx512",
        }
    }
}

/// The instruction set in use: the widest that this processor has, or a narrower one that `QTOOL_SIMD` asks for.
pub fn instruction_set() -> InstructionSet {
    #[cfg(feature = "fuzzing")]
    if let Some(set) = crate::fuzzing::FORCED.get() {
        return set;
    }
    static CHOSEN: OnceLock<InstructionSet> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let widest = widest();
        match std::env::var("QTOOL_SIMD").as_deref() {
            Ok("scalar") => InstructionSet::Baseline,
            Ok("avx2") => widest.min(InstructionSet::Avx2),
            _ => widest,
        }
    })
}

/// The widest that this processor has.
#[cfg(target_arch = "x86_64")]
pub(crate) fn widest() -> InstructionSet {
    let has_avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let has_avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    if has_avx2 && has_avx512 {
        InstructionSet::Avx512
    } else if has_avx2 {
        InstructionSet::Avx2
    } else {
        InstructionSet::Baseline
    }
}

/// The widest that this processor has.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn widest() -> InstructionSet {
    InstructionSet::Baseline
}

/// Bytes that a processor fetches at a time.
const CACHE_LINE: usize = 64;

/// Asks for `bytes` to be on their way into the second-level cache when they are needed. Changes no result.
#[inline(always)]
pub(crate) fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(CACHE_LINE) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        #[expect(unsafe_code, reason = "the intrinsic takes a raw pointer")]
        // SAFETY: prefetching has no effect that a program can observe and never faults; the pointer is valid besides.
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (bytes, CACHE_LINE);
}

/// Defines a function whose body is compiled for every [`InstructionSet`] and dispatched at run time.
macro_rules! dispatched {
    ($(#[$meta:meta])* $visibility:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) -> $result:ty $body:block) => {
        $(#[$meta])*
        $visibility fn $name($($argument: $type),*) -> $result {
            #[allow(clippy::too_many_arguments)]
            #[inline(always)]
            fn body($($argument: $type),*) -> $result $body

            #[cfg(target_arch = "x86_64")]
            {
                #[allow(clippy::too_many_arguments)]
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($argument: $type),*) -> $result {
                    body($($argument),*)
                }
                #[allow(clippy::too_many_arguments)]
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
                fn avx512($($argument: $type),*) -> $result {
                    body($($argument),*)
                }
                #[expect(unsafe_code, reason = "calling a function compiled for an instruction set needs it")]
                match $crate::simd::instruction_set() {
                    // SAFETY: `instruction_set` names a set only if the processor reports all its features.
                    $crate::simd::InstructionSet::Avx512 => return unsafe { avx512($($argument),*) },
                    // SAFETY: as above.
                    $crate::simd::InstructionSet::Avx2 => return unsafe { avx2($($argument),*) },
                    $crate::simd::InstructionSet::Baseline => {}
                }
            }
            body($($argument),*)
        }
    };
}

pub(crate) use dispatched;
