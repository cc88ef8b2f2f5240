//! What is refused, by name.

use deft::PlanUpdate;
use deft::attention::cpu::InPlace;
use deft::attention::{AttentionParams, PagedAttend, PagedTensor};
use deft::cache::KvElement;
use deft::plan::{BlockTables, BlockTablesError, Grouping, PagedPlan};
use half::bf16;

#[test]
fn bad_tables_are_refused_by_name_and_change_nothing() {
    let (ids, lens) = ([0, 1, 2, 3], [20, 32]);
    let good =
        BlockTables { ids: &ids, stride: 2, lens: &lens, page_size: 16, queries: &[], masks: &[] };
    let config = InPlace::plan_config(Grouping::Flatten, [4, 2, 64], f32::DTYPE);
    let mut plan = PagedPlan::new(config, &good).unwrap();
    let before = plan.plan().clone();
    let long = [0; 4 * 2];
    for (tables, message) in [
        (BlockTables { page_size: 48, ..good }, "page_size is 48; it must divide 64"),
        (BlockTables { page_size: 0, ..good }, "page_size is 0; it must divide 64"),
        (
            BlockTables { stride: 3, ..good },
            "block_tables has 4 elements, [sequences, stride] takes 6",
        ),
        (BlockTables { queries: &[1], ..good }, "queries has 1 elements, [sequences] takes 2"),
        (
            BlockTables { lens: &[20, 33], ..good },
            "lens[1] is 33; it must be between 0 and 32, what a row of block_tables holds",
        ),
        (
            BlockTables { lens: &[-1, 32], ..good },
            "lens[0] is -1; it must be between 0 and 32, what a row of block_tables holds",
        ),
        (
            BlockTables { ids: &[0, 1, -7, 3], ..good },
            "block_tables[2] is -7; it must be between 0 and 2147483647, a block",
        ),
        (
            BlockTables { queries: &[21, 1], ..good },
            "queries[0] is 21; it must be between 0 and 20, its sequence's length",
        ),
        (
            BlockTables { queries: &[1, -2], ..good },
            "queries[1] is -2; it must be between 0 and 32, its sequence's length",
        ),
        (
            BlockTables { queries: &[2, 1], masks: &[1, 3], ..good },
            "masks has 2 elements, [rows, words], a bit for each query of the longest draft, takes 3",
        ),
        (
            BlockTables { queries: &[2, 1], masks: &[1, 1, 1], ..good },
            "masks[1] is 0x1; a query sees its own token",
        ),
        (
            BlockTables { queries: &[2, 1], masks: &[1, 3, 3], ..good },
            "masks[2] is 0x3; bits are of the sequence's own queries",
        ),
        (
            BlockTables { ids: &[], lens: &[], ..good },
            "the view has 0 queries; a plan holds 1 to 65535",
        ),
        (
            BlockTables { ids: &long[..0], stride: 0, lens: &[0; 70_000], ..good },
            "the view has 70000 queries; a plan holds 1 to 65535",
        ),
    ] {
        let error: BlockTablesError = plan.update(&tables).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(*plan.plan(), before);
    }
    assert_eq!(plan.update(&good).unwrap(), PlanUpdate::Unchanged);
}

#[test]
fn calls_that_do_not_fit_the_plan_are_refused_by_name_and_write_nothing() {
    let (ids, lens) = ([0, 1, 2, 9], [20, 32]);
    let tables =
        BlockTables { ids: &ids, stride: 2, lens: &lens, page_size: 16, queries: &[], masks: &[] };
    let config = InPlace::plan_config(Grouping::Flatten, [4, 2, 64], f32::DTYPE);
    let plan = PagedPlan::new(config, &tables).unwrap();
    let (memory, q) = (vec![0.0; 10 * 16 * 2 * 64], vec![0.0; 2 * 4 * 64]);
    static HALVES: [bf16; 512] = [bf16::ZERO; 512];
    let refuse = |change: &dyn Fn(&mut PagedAttend<'_>)| {
        let mut out = vec![9.0; q.len()];
        let kv = || PagedTensor {
            elements: f32::elements(&memory),
            blocks: 10,
            strides: [16 * 2 * 64, 2 * 64, 64],
        };
        let mut call = PagedAttend {
            k: kv(),
            v: kv(),
            kv_heads: 2,
            head_dim: 64,
            q: f32::elements(&q),
            out: f32::elements_mut(&mut out),
            lse: None,
            params: AttentionParams::new(64),
        };
        change(&mut call);
        let result = InPlace::default().attend(&plan, call).map_err(|error| error.to_string());
        assert!(result.is_ok() || out.iter().all(|&x| x == 9.0));
        result.err()
    };
    assert_eq!(refuse(&|_| ()), None);
    for (change, message) in [
        (
            (&|call: &mut PagedAttend<'_>| call.v.blocks = 9) as &dyn Fn(&mut PagedAttend<'_>),
            "block_tables[3] names page 9, v has 9",
        ),
        (
            &|call| call.k.blocks = 11,
            "k has 20480 elements, [blocks, page_size, kv_heads, head_dim] by its strides takes 22528",
        ),
        (
            &|call| call.v.strides[1] = usize::MAX,
            "v has 20480 elements, [blocks, page_size, kv_heads, head_dim] by its strides takes \
             18446744073709551615",
        ),
        (&|call| call.head_dim = 60, "head_dim is 60; it must be a multiple of 8, up to 256"),
        (&|call| call.kv_heads = 0, "kv_heads is 0; it must be between 1 and 4096"),
        (&|call| call.kv_heads = 1, "q has 512 elements, [rows, q_heads, head_dim] takes 256"),
        (&|call| call.q = bf16::elements(&HALVES), "q is bf16, the cache holds f32"),
        (&|call| call.params.scale = f32::NAN, "scale is NaN; it must be finite"),
    ] {
        let refused: Option<String> = refuse(change);
        assert_eq!(refused.as_deref(), Some(message));
    }
}
