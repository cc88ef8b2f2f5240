//! A function's signature, as far as an entry point needs it.

use proc_macro2::TokenStream;
use quote::ToTokens;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::{
    Attribute, Error, Generics, Ident, PointerMutability, Result, ReturnType, Token, Type,
    Visibility, parenthesized,
};

/// `unsafe fn name<generics>(parameters)`; what follows is of no concern.
pub(crate) struct Function {
    pub(crate) name: Ident,
    pub(crate) generics: Generics,
    pub(crate) parameters: Vec<Parameter>,
}

/// One parameter of a kernel.
pub(crate) struct Parameter {
    pub(crate) name: Ident,
    pub(crate) ty: Type,
    /// The type as it is written in the source.
    pub(crate) text: String,
}

impl Parse for Function {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        input.call(Attribute::parse_outer)?;
        input.parse::<Visibility>()?;
        if !input.peek(Token![unsafe]) {
            return Err(input.error("a kernel is an `unsafe fn`: its launch cannot check pointers"));
        }
        input.parse::<Token![unsafe]>()?;
        input.parse::<Token![fn]>()?;
        let name = input.parse()?;
        let generics = input.parse()?;
        let inside;
        parenthesized!(inside in input);
        let parameters = Punctuated::<Parameter, Token![,]>::parse_terminated(&inside)?;
        if let ReturnType::Type(_, ty) = input.parse()? {
            return Err(Error::new_spanned(ty, "a kernel returns nothing"));
        }
        input.parse::<TokenStream>()?;
        Ok(Self { name, generics, parameters: parameters.into_iter().collect() })
    }
}

impl Parse for Parameter {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let name = input.parse()?;
        input.parse::<Token![:]>()?;
        let ty: Type = input.parse()?;
        let text = match &ty {
            Type::Ptr(pointer) => {
                let access = match pointer.mutability {
                    PointerMutability::Mut(_) => "mut",
                    PointerMutability::Const(_) => "const",
                };
                format!("*{access} {}", pointer.elem.to_token_stream())
            }
            other => other.to_token_stream().to_string(),
        };
        let is_number = ["u32", "i32", "f32", "u64", "i64", "f64"].contains(&text.as_str());
        if !is_number && !matches!(ty, Type::Ptr(_)) {
            return Err(Error::new_spanned(
                &ty,
                "a kernel's parameters are pointers and 32- or 64-bit numbers",
            ));
        }
        Ok(Self { name, ty, text })
    }
}
