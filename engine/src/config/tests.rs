//! Ranges, presets and frequencies.

use super::*;

#[test]
fn presets_are_valid_and_as_large_as_their_names_say() {
    let sizes = [
        (LlamaConfig::smollm2_135m(), 134_515_008),
        (LlamaConfig::llama3_8b(), 8_030_261_248),
        (LlamaConfig::llama3_70b(), 70_553_706_496),
        (LlamaConfig::codellama_7b(), 6_738_546_688),
        (LlamaConfig::codellama_34b(), 33_743_970_304),
    ];
    for (config, parameters) in sizes {
        config.validate().unwrap();
        assert_eq!(config.parameters(), parameters);
    }
}

fn refused(change: impl FnOnce(&mut LlamaConfig)) -> String {
    let mut config = LlamaConfig::smollm2_135m();
    change(&mut config);
    config.validate().unwrap_err().to_string()
}

#[test]
fn fields_out_of_range_are_named() {
    assert_eq!(refused(|config| config.layers = 0), "layers is 0; it must be between 1 and 4096");
    assert_eq!(refused(|config| config.hidden = 577), "hidden is 577; it must be a multiple of 8");
    assert_eq!(
        refused(|config| config.q_heads = 10),
        "q_heads is 10; it must be a multiple of kv_heads, 3"
    );
    assert_eq!(
        refused(|config| config.head_dim = 72),
        "head_dim is 72; it must be 64, 80, 96, 112, 128, 192 or 256"
    );
    for (field, message) in [
        (refused(|config| config.ffn = 0), "ffn is 0"),
        (refused(|config| config.kv_heads = 0), "kv_heads is 0"),
        (refused(|config| config.q_heads = 5000), "q_heads is 5000"),
        (refused(|config| config.vocabulary = 0), "vocabulary is 0"),
        (refused(|config| config.context = 1 << 30), "context is 1073741824"),
        (refused(|config| config.rms_eps = f32::NAN), "rms_eps is NaN"),
        (refused(|config| config.rope_theta = -1.0), "rope_theta is -1"),
    ] {
        assert!(field.starts_with(message), "{field}");
    }
}

fn llama31(factor: f64, high: f64) -> RopeScaling {
    RopeScaling::Llama3 { factor, low: 1.0, high, original_context: 8192 }
}

#[test]
fn scaling_out_of_range_is_named() {
    let scaled = |scaling| refused(|config| config.rope_scaling = scaling);
    assert!(scaled(llama31(0.5, 4.0)).starts_with("rope_scaling.factor is 0.5"));
    assert!(scaled(llama31(8.0, 1.0)).starts_with("rope_scaling.high is 1"));
    assert!(scaled(RopeScaling::Divisors(vec![1.0; 31])).starts_with("rope_scaling is 31"));
    assert!(scaled(RopeScaling::Divisors(vec![0.0; 32])).starts_with("rope_scaling is 0"));
}

#[test]
fn llama3_scaling_keeps_short_wavelengths_and_stretches_long_ones() {
    let plain = LlamaConfig { head_dim: 128, ..LlamaConfig::llama3_8b() };
    let scaled = LlamaConfig { rope_scaling: llama31(8.0, 4.0), ..plain.clone() };
    let (plain, scaled) = (plain.rope_frequencies().unwrap(), scaled.rope_frequencies().unwrap());
    let mut between = 0;
    for (plain, scaled) in plain.into_iter().zip(scaled) {
        // As published with Llama 3.1, by wavelength.
        let wavelength = std::f64::consts::TAU / plain;
        let expected = if wavelength < 8192.0 / 4.0 {
            plain
        } else if wavelength > 8192.0 {
            plain / 8.0
        } else {
            between += 1;
            let smooth = (8192.0 / wavelength - 1.0) / (4.0 - 1.0);
            (1.0 - smooth) * plain / 8.0 + smooth * plain
        };
        assert!((scaled / expected - 1.0).abs() < 1e-12);
    }
    assert!(between > 2);
}

#[test]
fn tables_without_scaling_are_the_library_s() {
    let config = LlamaConfig::smollm2_135m();
    let table = config.rotary_table(300).unwrap();
    assert_eq!(table, RotaryTable::new(64, 300, 100_000.0).unwrap());
}

#[test]
fn divisors_divide() {
    let mut config = LlamaConfig::smollm2_135m();
    let plain = config.rope_frequencies().unwrap();
    config.rope_scaling = RopeScaling::Divisors((0..32).map(|i| 1.0 + i as f32).collect());
    config.validate().unwrap();
    for (i, divided) in config.rope_frequencies().unwrap().into_iter().enumerate() {
        assert_eq!(divided, plain[i] / (1.0 + i as f64));
    }
}

#[test]
fn frequencies_of_a_shape_that_is_out_of_range_are_refused() {
    let config = LlamaConfig {
        rope_scaling: RopeScaling::Divisors(vec![1.0; 3]),
        ..LlamaConfig::smollm2_135m()
    };
    let message = "rope_scaling is 3 divisors; it must be head_dim / 2, 32";
    let error = config.rope_frequencies().unwrap_err();
    assert_eq!(error.to_string(), message);
    let error = config.rotary_table(8).unwrap_err();
    assert_eq!(error.to_string(), message);
}

#[test]
fn what_is_otherwise_than_llama_is_told_in_words() {
    assert!(Variant::LLAMA.differences().is_empty());
    let turns = vec![Turn::Model; 4];
    let variants = [
        Variant { qkv_bias: true, ..Variant::LLAMA },
        Variant { qk_norm: true, ..Variant::LLAMA },
        Variant { post_norms: true, ..Variant::LLAMA },
        Variant { activation: Activation::GeluTanh, ..Variant::LLAMA },
        Variant { embedding_scale: 2.0, ..Variant::LLAMA },
        Variant { query_scale: Some(0.1), ..Variant::LLAMA },
        Variant { attention_cap: Some(50.0), ..Variant::LLAMA },
        Variant { logit_cap: Some(30.0), ..Variant::LLAMA },
        Variant { window: Some(512), ..Variant::LLAMA },
        Variant { turns: [&turns[..], &[Turn::Not]].concat(), ..Variant::LLAMA },
    ];
    let words = variants.map(|variant| variant.differences());
    assert!(words.iter().all(|words| words.len() == 1));
    let different: std::collections::HashSet<_> = words.iter().collect();
    assert_eq!(different.len(), words.len());
    assert!(Variant { turns, ..Variant::LLAMA }.differences().is_empty());
}

#[test]
fn variants_out_of_range_are_refused() {
    let refused = |variant: Variant| {
        let config = LlamaConfig { variant, ..LlamaConfig::smollm2_135m() };
        config.validate().unwrap_err().to_string()
    };
    let zero = Variant { logit_cap: Some(0.0), ..Variant::LLAMA };
    assert_eq!(refused(zero), "logit_cap is 0; it must be positive and finite");
    let few = Variant { turns: vec![Turn::Not; 3], ..Variant::LLAMA };
    assert_eq!(refused(few), "turns is of 3 layers; it must be of none, or of 30 at least");
    let window = Variant { window: Some(0), ..Variant::LLAMA };
    assert!(refused(window).starts_with("window is 0"));
}

/// transformers' values for Qwen's YaRN: head dimension 128, base 1e6, factor 4, 32,768 tokens before.
#[test]
fn yarn_keeps_short_wavelengths_and_stretches_long_ones() {
    let divisors = family::yarn_divisors(128, 1e6, 4.0, 32_768.0, [32.0, 1.0]);
    assert_eq!(divisors.len(), 64);
    // low = floor(23.6), high = ceil(39.6) by the paper's formula.
    assert!(divisors[..=23].iter().all(|&divisor| divisor == 1.0));
    assert!(divisors[40..].iter().all(|&divisor| (divisor - 4.0).abs() < 1e-6));
    assert!(divisors.windows(2).all(|pair| pair[0] <= pair[1]));
    let halfway = 1.0 / (0.5 / 4.0 + 0.5);
    let middle = (divisors[31] + divisors[32]) / 2.0;
    assert!((f64::from(middle) - halfway).abs() < 0.05, "{middle} is not {halfway}");
    assert!((family::yarn_scale(4.0, None) - (0.1 * 4_f64.ln() + 1.0).powi(2)).abs() < 1e-12);
    assert_eq!((family::yarn_scale(1.0, None), family::yarn_scale(4.0, Some(1.0))), (1.0, 1.0));
}

#[test]
fn a_context_larger_than_all_pages_asks_for_no_larger_tables() {
    let pool = deft::cache::PagePool::new(100).unwrap();
    let of = |context| LlamaConfig { context, ..LlamaConfig::smollm2_135m() }.positions(&pool);
    assert_eq!([of(1 << 24), of(2048)], [6400, 2048]);
}
