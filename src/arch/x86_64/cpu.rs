//! Which instruction set extensions a frame may rely on.

use std::collections::BTreeSet;

/// Flags of /proc/cpuinfo that user programs select code by.
const USER_VISIBLE: &[&str] = &[
    "sse3", "pni", "ssse3", "sse4_1", "sse4_2", "popcnt", "aes", "pclmulqdq", "avx", "avx2", "f16c", "fma", "bmi1", "bmi2", "abm",
    "movbe", "rdrand", "rdseed", "adx", "sha_ni", "xsave", "xsaveopt", "xsavec", "fsgsbase", "clflushopt", "clwb", "vaes", "vpclmulqdq",
    "gfni", "avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl", "avx512ifma", "avx512vbmi", "avx512_vbmi2", "avx512_vnni",
    "avx512_bitalg", "avx512_vpopcntdq", "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16", "serialize",
    "movdiri", "movdir64b", "rdpid", "erms", "fsrm", "pku", "rtm", "hle", "cx16", "lahf_lm", "3dnowprefetch", "sse4a", "xgetbv1",
];

/// The user-visible features of this machine, from the text of /proc/cpuinfo.
pub fn features(cpuinfo: &str) -> BTreeSet<String> {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or("");
    let flags = flags.trim_start_matches([' ', '\t', ':']);
    flags.split(' ').filter(|flag| USER_VISIBLE.contains(flag)).map(str::to_owned).collect()
}

/// The processor's name, from the text of /proc/cpuinfo.
pub fn model(cpuinfo: &str) -> String {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name")).unwrap_or("");
    line.split_once(':').map_or("unknown", |(_, name)| name.trim()).to_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn features_and_model_come_from_cpuinfo() {
        let text = "processor\t: 0\nmodel name\t: Fast One\nflags\t\t: fpu avx2 sse4_2 unknown\n";
        let features = super::features(text);
        assert!(features.contains("avx2") && features.contains("sse4_2") && features.len() == 2);
        assert_eq!(super::model(text), "Fast One");
    }
}
