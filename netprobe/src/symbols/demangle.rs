//! Names of functions as their source has them. Only what a compiler of C++ or Rust has mangled is taken apart: to a
//! demangler of C++ every other name is a type, so that `a` of a C program would be `signed char`.

use std::borrow::Cow;

/// The name of a symbol for people.
pub(super) fn demangled(symbol: &str) -> Cow<'_, str> {
    let rust = symbol.starts_with("_Z") || symbol.starts_with("_R");
    if rust && let Ok(name) = rustc_demangle::try_demangle(symbol) {
        return Cow::Owned(format!("{name:#}"));
    }
    let name = symbol.starts_with("_Z").then(|| {
        let name = cpp_demangle::Symbol::new(symbol).ok()?;
        name.demangle().ok()
    });
    name.flatten().map_or(Cow::Borrowed(symbol), Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mangled_names_are_taken_apart() {
        for (symbol, name) in [
            ("_Z3foov", "foo()"),
            (
                "_ZNSt6vectorIiSaIiEE9push_backERKi",
                "std::vector<int, std::allocator<int> >::push_back(int const&)",
            ),
            ("_ZN4core3ptr4drop17h0123456789abcdefE", "core::ptr::drop"),
            ("_RNvC7mycrate3foo", "mycrate::foo"),
            ("_Z", "_Z"),
            ("_ZZZ", "_ZZZ"),
        ] {
            assert_eq!(demangled(symbol), name);
        }
        for c in [
            "a", "b", "f", "v", "x", "Ss", "So", "Pc", "PFvvE", "N1a1bE", "St3foo", "R1a",
            "ZN3fooE",
        ] {
            assert_eq!(demangled(c), c);
        }
    }
}
