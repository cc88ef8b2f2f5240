//! From a function with its attribute to the function with its entry points.

use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use syn::{Error, GenericParam, Result, parse2};

use crate::attribute::{Attribute, Instance};
use crate::function::Function;

/// The function, unchanged, and an item for each of its instances.
pub(crate) fn expand(attribute: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let function: Function = parse2(item.clone())?;
    let mut attribute: Attribute = parse2(attribute)?;
    if attribute.instances.is_empty() {
        attribute.instances.push(Instance { name: function.name.clone(), arguments: None });
    }
    let instances = attribute.instances.iter();
    let entries: Vec<_> =
        instances.map(|instance| entry(&attribute, &function, instance)).collect::<Result<_>>()?;
    Ok(quote! { #item #(#entries)* })
}

fn entry(attribute: &Attribute, function: &Function, instance: &Instance) -> Result<TokenStream> {
    let (generics, values) = bind_generics(function, instance)?;
    let name = &function.name;
    let arguments = instance.arguments.as_ref().map(|list| quote!(::#list));
    let names: Vec<_> = function.parameters.iter().map(|each| &each.name).collect();
    let types: Vec<_> = function.parameters.iter().map(|each| &each.ty).collect();
    let (threads, min_blocks) = (&attribute.threads, &attribute.min_blocks);
    let shared = &attribute.shared;
    let record = record(attribute, function, instance, &values);
    let symbol = instance.name.to_string();
    let archs = &attribute.archs;
    let for_archs = if archs.is_empty() {
        quote!(target_arch = "nvptx64")
    } else {
        quote!(all(target_arch = "nvptx64", any(#(target_feature = #archs),*)))
    };
    Ok(quote! {
        #[cfg(#for_archs)]
        ::core::arch::global_asm!(
            #record,
            const { #(#generics)* let bound: u32 = #threads; bound },
            const { #(#generics)* let bound: u32 = #min_blocks; bound },
            const { #(#generics)* let bound: u32 = #shared; bound },
        );
        const _: () = {
            #(#generics)*
            let (threads, min_blocks, shared): (u32, u32, u32) = (#threads, #min_blocks, #shared);
            assert!(
                threads > 0 && threads <= 1024 && threads.is_multiple_of(32),
                "a block has whole warps, at most 32 of them"
            );
            assert!(min_blocks > 0, "at least one block is on a multiprocessor");
            assert!(shared <= 227 << 10, "a block has at most 227 KiB of shared memory");
            let _: unsafe fn(#(#types),*) = #name #arguments;

            #[cfg(#for_archs)]
            #[unsafe(export_name = #symbol)]
            unsafe extern "ptx-kernel" fn __entry(#(#names: #types),*) {
                // SAFETY: the caller's obligations are the function's.
                unsafe { #name #arguments (#(#names),*) }
            }
        };
    })
}

/// A generic parameter's name, and its argument as text.
type Value = (String, String);

/// The generic parameters as items of the instance's values, and as pairs of name and text.
fn bind_generics(
    function: &Function,
    instance: &Instance,
) -> Result<(Vec<TokenStream>, Vec<Value>)> {
    let parameters = &function.generics.params;
    let arguments: Vec<_> = instance.arguments.iter().flat_map(|list| &list.args).collect();
    if arguments.len() != parameters.len() {
        let message = format!(
            "`{}` has {} generic parameters, {} gives {}",
            function.name,
            parameters.len(),
            instance.name,
            arguments.len()
        );
        return Err(Error::new(instance.name.span(), message));
    }
    let mut items = Vec::new();
    let mut values = Vec::new();
    for (parameter, value) in parameters.iter().zip(arguments) {
        let name = match parameter {
            GenericParam::Type(parameter) => {
                let name = &parameter.ident;
                items.push(quote! { #[allow(dead_code)] type #name = #value; });
                name
            }
            GenericParam::Const(parameter) => {
                let (name, ty) = (&parameter.ident, &parameter.ty);
                items.push(quote! { #[allow(dead_code)] const #name: #ty = #value; });
                name
            }
            GenericParam::Lifetime(lifetime) => {
                return Err(Error::new_spanned(lifetime, "a kernel borrows nothing"));
            }
        };
        values.push((name.to_string(), value.to_token_stream().to_string()));
    }
    Ok((items, values))
}

/// The comment in the PTX, as `global_asm!` takes it: three operands, other braces doubled.
fn record(
    attribute: &Attribute,
    function: &Function,
    instance: &Instance,
    values: &[Value],
) -> String {
    let mut group = match &attribute.group {
        Some(group) => group.value(),
        None => function.name.to_string(),
    };
    for (name, value) in values {
        group = group.replace(&format!("{{{name}}}"), value);
    }
    let parameters: Vec<_> = function
        .parameters
        .iter()
        .map(|each| format!("[\"{}\",\"{}\"]", each.name, each.text))
        .collect();
    format!(
        "// .kernel {{{{\"entry\":\"{}\",\"family\":\"{}\",\"group\":\"{group}\",\"threads\":{{}},\
         \"min_blocks\":{{}},\"shared_bytes\":{{}},\"parameters\":[{}]}}}}",
        instance.name,
        function.name,
        parameters.join(",")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(attribute: TokenStream, item: TokenStream) -> String {
        expand(attribute, item).unwrap().to_string()
    }

    fn refusal(attribute: TokenStream, item: TokenStream) -> String {
        expand(attribute, item).unwrap_err().to_string()
    }

    fn append() -> TokenStream {
        quote! {
            /// Writes.
            pub unsafe fn append<E: Element, const D: u32>(pool: *mut u16, count: u32)
            where [f32; 4]: Sized {
                body()
            }
        }
    }

    #[test]
    fn an_entry_is_exported_for_each_instance() {
        let attribute = quote!(threads = 256, instances(a: <Bf16, 64>, b: <F16, 128>));
        let text = expanded(attribute, append());
        assert!(text.starts_with(&append().to_string()));
        for part in [
            r#"export_name = "a""#,
            "append :: < Bf16 , 64 > (pool , count)",
            r#"export_name = "b""#,
            "append :: < F16 , 128 > (pool , count)",
            "const D : u32 = 128",
            "type E = F16",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_function_without_generics_is_an_entry_of_its_name() {
        let item = quote! { unsafe fn advance(count: u32) {} };
        let text = expanded(quote!(threads = THREADS), item);
        assert!(text.contains(r#"export_name = "advance""#), "{text}");
    }

    #[test]
    fn the_record_names_parameters_and_leaves_the_bounds_to_operands() {
        let attribute: Attribute = parse2(quote!(
            threads = T,
            group = "append_{E}_d{D}",
            instances(a: <Bf16, 64>)
        ))
        .unwrap();
        let function: Function = parse2(append()).unwrap();
        let (_, values) = bind_generics(&function, &attribute.instances[0]).unwrap();
        assert_eq!(
            record(&attribute, &function, &attribute.instances[0], &values),
            r#"// .kernel {{"entry":"a","family":"append","group":"append_Bf16_d64","threads":{},"#
                .to_owned()
                + r#""min_blocks":{},"shared_bytes":{},"parameters":[["pool","*mut u16"],["count","u32"]]}}"#
        );
    }

    #[test]
    fn bounds_may_be_expressions_of_the_generic_parameters() {
        let attribute: Attribute = parse2(quote!(
            threads = block::<E, D>() + (1 << D),
            shared = Tile::<D>::SHARED_BYTES,
            min_blocks = 2
        ))
        .unwrap();
        let threads = quote!(block::<E, D>() + (1 << D)).to_string();
        assert_eq!(attribute.threads.to_string(), threads);
        assert_eq!(attribute.shared.to_string(), quote!(Tile::<D>::SHARED_BYTES).to_string());
        assert_eq!(attribute.min_blocks.to_string(), "2");
    }

    #[test]
    fn an_entry_for_some_architectures_is_compiled_for_no_other() {
        let attribute = quote!(threads = 32, archs("sm_90a"));
        let text = expanded(attribute, quote! { unsafe fn f() {} });
        assert!(text.contains(r#"any (target_feature = "sm_90a")"#), "{text}");
    }

    #[test]
    fn what_cannot_be_a_kernel_is_refused_with_the_reason() {
        let plain = || quote!(threads = 32);
        let by_value = quote! { unsafe fn f(record: Record) {} };
        assert!(refusal(plain(), by_value).contains("pointers and 32- or 64-bit numbers"));
        assert!(refusal(plain(), quote! { fn f() {} }).contains("unsafe fn"));
        let returns = quote! { unsafe fn f() -> u32 { 0 } };
        assert!(refusal(plain(), returns).contains("returns nothing"));
        assert!(refusal(quote!(), quote! { unsafe fn f() {} }).contains("threads"));
        let unknown = quote!(threads = 32, warps = 2);
        assert!(refusal(unknown, quote! { unsafe fn f() {} }).contains("`warps`"));
        let few = quote!(threads = 32, instances(a: <64>));
        assert!(refusal(few, append()).contains("2 generic parameters, a gives 1"));
    }
}
