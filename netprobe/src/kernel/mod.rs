//! Everything that touches the running kernel: its BTF, our programs in it, and what they say.

pub mod attach;
pub mod btf;
pub mod btf_index;
pub mod casts;
pub mod cost;
pub mod drop_reasons;
pub mod fdinfo;
pub mod governor;
mod kallsyms;
pub mod keeper;
mod keepers;
mod link_info;
pub mod load;
pub mod namer;
pub mod names;
mod netns;
mod object;
pub mod offsets;
pub mod own_frames;
pub mod pod;
pub mod privileges;
pub mod reset_reasons;
mod run_time;
pub mod sampler;
pub mod session;
pub mod symbols;
pub mod task_stacks;
pub mod totals;
pub mod windows;

/// `uname -r`
pub fn release() -> String {
    let uname = rustix::system::uname();
    uname.release().to_string_lossy().into_owned()
}
