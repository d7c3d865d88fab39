//! Colours by where code comes from, as the suffixes of frames tell. inferno takes names with dots and capitals for Java,
//! which those of Go and many of C are, too.

use inferno::flamegraph::color::Color;

/// The colour of a frame; `None` where inferno has it right.
pub(super) fn colour(frame: &str) -> Option<Color> {
    let is_told = ["_[k]", "_[i]", "_[j]"]
        .iter()
        .any(|suffix| frame.ends_with(suffix));
    // Those of C++ and Rust are yellow.
    (!is_told && !frame.contains("::")).then(|| red(frame))
}

/// inferno's red, a shade for each name.
fn red(frame: &str) -> Color {
    // FNV-1a.
    let hash = frame.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    let [shade, ..] = hash.to_be_bytes();
    Color {
        r: 200 + shade / 5,
        g: 50 + shade / 3,
        b: 50 + shade / 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_of_c_and_go_are_not_taken_for_java() {
        for frame in ["PostgresMain", "main.main", "php-fpm8.2", "net/http.serve"] {
            let colour = colour(frame).unwrap();
            assert!(colour.r >= 200 && colour.g == colour.b && colour.g <= 135);
        }
        for frame in [
            "Main.run_[j]",
            "tcp_v4_rcv_[k]",
            "read_[i]",
            "std::rt::main",
        ] {
            assert_eq!(colour(frame), None, "{frame}");
        }
    }
}
