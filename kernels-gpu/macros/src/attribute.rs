//! What stands between the parentheses of `#[kernel(...)]`.

use proc_macro2::{Span, TokenStream, TokenTree};
use quote::quote;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::{AngleBracketedGenericArguments, Error, Ident, LitStr, Result, Token, parenthesized};

/// The arguments of the attribute.
pub(crate) struct Attribute {
    pub(crate) threads: TokenStream,
    pub(crate) min_blocks: TokenStream,
    pub(crate) shared: TokenStream,
    pub(crate) group: Option<LitStr>,
    pub(crate) archs: Vec<LitStr>,
    pub(crate) instances: Vec<Instance>,
}

/// A symbol, and the generic arguments that it stands for.
pub(crate) struct Instance {
    pub(crate) name: Ident,
    pub(crate) arguments: Option<AngleBracketedGenericArguments>,
}

impl Parse for Attribute {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let mut threads = None;
        let (mut min_blocks, mut shared) = (quote!(1), quote!(0));
        let (mut group, mut archs, mut instances) = (None, Vec::new(), Vec::new());
        while !input.is_empty() {
            let name: Ident = input.parse()?;
            match name.to_string().as_str() {
                "threads" => threads = Some(expression(input)?),
                "min_blocks" => min_blocks = expression(input)?,
                "shared" => shared = expression(input)?,
                "group" => {
                    input.parse::<Token![=]>()?;
                    group = Some(input.parse()?);
                }
                "archs" => archs = list(input)?,
                "instances" => instances = list(input)?,
                other => {
                    let known = "threads, min_blocks, shared, group, archs, instances";
                    let message = format!("`{other}` is no argument of `kernel`: {known}");
                    return Err(Error::new(name.span(), message));
                }
            }
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        let threads = threads.ok_or_else(|| {
            Error::new(Span::call_site(), "say `threads = ..`, the most that a block has")
        })?;
        Ok(Self { threads, min_blocks, shared, group, archs, instances })
    }
}

impl Parse for Instance {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let name = input.parse()?;
        let mut arguments = None;
        if input.parse::<Option<Token![:]>>()?.is_some() {
            arguments = Some(input.parse()?);
        }
        Ok(Self { name, arguments })
    }
}

/// `= tokens`, up to a comma that is not within brackets.
fn expression(input: ParseStream<'_>) -> Result<TokenStream> {
    input.parse::<Token![=]>()?;
    let mut tokens = TokenStream::new();
    // Commas between `<` and `>` are told by `::<`: without it, `<` compares.
    let mut angles = 0;
    let mut turbofish = 0;
    while !input.is_empty() && (angles > 0 || !input.peek(Token![,])) {
        let token: TokenTree = input.parse()?;
        if let TokenTree::Punct(punct) = &token {
            match punct.as_char() {
                '<' if turbofish == 2 || angles > 0 => angles += 1,
                '>' if angles > 0 => angles -= 1,
                _ => {}
            }
            turbofish = if punct.as_char() == ':' { turbofish + 1 } else { 0 };
        } else {
            turbofish = 0;
        }
        tokens.extend([token]);
    }
    if tokens.is_empty() {
        return Err(input.error("expected an expression of type u32"));
    }
    Ok(tokens)
}

fn list<T: Parse>(input: ParseStream<'_>) -> Result<Vec<T>> {
    let inside;
    parenthesized!(inside in input);
    let items = Punctuated::<T, Token![,]>::parse_terminated(&inside)?;
    Ok(items.into_iter().collect())
}
