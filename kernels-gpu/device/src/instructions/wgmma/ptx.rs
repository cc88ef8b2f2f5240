//! The instructions as text: one block of assembly a call, so that the accumulators stay in registers
//! from its first step to its last.

use core::arch::asm;

use super::{Accumulators, Element, Operand};

/// `{0}, {1}, ...` in the assembly's own braces.
macro_rules! list {
    ($first:literal $($i:literal)*) => {
        concat!("{{{", $first, "}", $(", {", $i, "}",)* "}}")
    };
}

/// One step's multiplication, and the descriptors and predicate of the next step.
macro_rules! shared_step {
    ($n:literal, $type:literal, $list:tt) => {
        concat!(
            "wgmma.mma_async.sync.aligned.m64n", $n, "k16.f32.", $type, ".", $type, " ", list! $list,
            ", x, y, p, 1, 1, {trans_a}, {trans_b};",
            "add.s64 x, x, {a_step}; add.s64 y, y, {b_step}; setp.eq.u32 p, 0, 0;"
        )
    };
}

macro_rules! shared {
    ($d:ident, $a:ident, $b:ident, $accumulate:ident, $n:literal, $type:literal, $list:tt,
     ($($i:literal)*), [$($step:literal)*]) => {
        asm!(
            "{{ .reg .pred p; .reg .b64 x, y;",
            "mov.b64 x, {a}; mov.b64 y, {b}; setp.ne.u32 p, {accumulate}, 0;",
            $(concat!($step, shared_step!($n, $type, $list)),)*
            "}}",
            $(inout(reg32) $d[$i],)*
            a = in(reg64) $a.descriptor.bits(),
            b = in(reg64) $b.descriptor.bits(),
            a_step = in(reg64) u64::from($a.step_bytes >> 4),
            b_step = in(reg64) u64::from($b.step_bytes >> 4),
            accumulate = in(reg32) $accumulate as u32,
            trans_a = const TRANS_A as u32,
            trans_b = const TRANS_B as u32,
            options(nostack),
        )
    };
}

/// One step's multiplication with `a` in registers `a0` to `a3`, named by the step.
macro_rules! register_step {
    ($n:literal, $type:literal, $list:tt, $step:literal) => {
        concat!(
            "wgmma.mma_async.sync.aligned.m64n", $n, "k16.f32.", $type, ".", $type, " ", list! $list,
            ", {{{a", $step, "0}, {a", $step, "1}, {a", $step, "2}, {a", $step, "3}}}, y, p, 1, 1, {trans_b};",
            "add.s64 y, y, {b_step}; setp.eq.u32 p, 0, 0;"
        )
    };
}

macro_rules! registers {
    ($d:ident, $a:ident, $b:ident, $accumulate:ident, $n:literal, $type:literal, $list:tt,
     ($($i:literal)*), [$($step:literal $a0:ident $a1:ident $a2:ident $a3:ident)*]) => {
        asm!(
            "{{ .reg .pred p; .reg .b64 y;",
            "mov.b64 y, {b}; setp.ne.u32 p, {accumulate}, 0;",
            $(register_step!($n, $type, $list, $step),)*
            "}}",
            $(inout(reg32) $d[$i],)*
            $(
                $a0 = in(reg32) $a[$step][0],
                $a1 = in(reg32) $a[$step][1],
                $a2 = in(reg32) $a[$step][2],
                $a3 = in(reg32) $a[$step][3],
            )*
            b = in(reg64) $b.descriptor.bits(),
            b_step = in(reg64) u64::from($b.step_bytes >> 4),
            accumulate = in(reg32) $accumulate as u32,
            trans_b = const TRANS_B as u32,
            options(nostack),
        )
    };
}

macro_rules! accumulators {
    ($n:literal, $list:tt, ($($i:literal)*)) => {
        impl Accumulators for [f32; $n / 2] {
            const N: u32 = $n;

            #[inline(always)]
            fn as_mut_slice(&mut self) -> &mut [f32] {
                self
            }

            #[inline(always)]
            fn touch(&mut self) {
                // SAFETY: no instruction.
                unsafe {
                    asm!(concat!("// ", list! $list), $(inout(reg32) self[$i],)* options(nostack));
                }
            }

            #[inline(always)]
            unsafe fn mma_shared<
                E: Element,
                const TRANS_A: bool,
                const TRANS_B: bool,
                const STEPS: usize,
            >(
                &mut self,
                a: Operand,
                b: Operand,
                accumulate: bool,
            ) {
                const { assert!(matches!(STEPS, 1 | 2 | 4 | 8 | 16), "STEPS is 1, 2, 4, 8 or 16") }
                macro_rules! steps {
                    ($steps:tt) => {
                        // SAFETY: the caller's.
                        unsafe {
                            if E::IS_BF16 {
                                shared!(self, a, b, accumulate, $n, "bf16", $list, ($($i)*), $steps)
                            } else {
                                shared!(self, a, b, accumulate, $n, "f16", $list, ($($i)*), $steps)
                            }
                        }
                    };
                }
                match STEPS {
                    1 => steps!([""]),
                    2 => steps!(["" ""]),
                    4 => steps!(["" "" "" ""]),
                    8 => steps!(["" "" "" "" "" "" "" ""]),
                    _ => steps!(["" "" "" "" "" "" "" "" "" "" "" "" "" "" "" ""]),
                }
            }

            #[inline(always)]
            unsafe fn mma_registers<E: Element, const TRANS_B: bool, const STEPS: usize>(
                &mut self,
                a: &[[u32; 4]; STEPS],
                b: Operand,
                accumulate: bool,
            ) {
                const { assert!(matches!(STEPS, 1 | 2 | 4 | 8), "STEPS is 1, 2, 4 or 8") }
                macro_rules! steps {
                    ($steps:tt) => {
                        // SAFETY: the caller's.
                        unsafe {
                            if E::IS_BF16 {
                                registers!(self, a, b, accumulate, $n, "bf16", $list, ($($i)*), $steps)
                            } else {
                                registers!(self, a, b, accumulate, $n, "f16", $list, ($($i)*), $steps)
                            }
                        }
                    };
                }
                match STEPS {
                    1 => steps!([0 a00 a01 a02 a03]),
                    2 => steps!([0 a00 a01 a02 a03 1 a10 a11 a12 a13]),
                    4 => steps!([0 a00 a01 a02 a03 1 a10 a11 a12 a13 2 a20 a21 a22 a23
                        3 a30 a31 a32 a33]),
                    _ => steps!([0 a00 a01 a02 a03 1 a10 a11 a12 a13 2 a20 a21 a22 a23
                        3 a30 a31 a32 a33 4 a40 a41 a42 a43 5 a50 a51 a52 a53 6 a60 a61 a62 a63
                        7 a70 a71 a72 a73]),
                }
            }
        }
    };
    ($($n:literal: ($($i:literal)+);)+) => { $(accumulators!($n, ($($i)+), ($($i)+));)+ };
}

accumulators! {
    8: (0 1 2 3);
    16: (0 1 2 3 4 5 6 7);
    32: (0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    64: (0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30
        31);
    128: (0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30
        31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58
        59 60 61 62 63);
    256: (0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30
        31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58
        59 60 61 62 63 64 65 66 67 68 69 70 71 72 73 74 75 76 77 78 79 80 81 82 83 84 85 86
        87 88 89 90 91 92 93 94 95 96 97 98 99 100 101 102 103 104 105 106 107 108 109 110
        111 112 113 114 115 116 117 118 119 120 121 122 123 124 125 126 127);
}
