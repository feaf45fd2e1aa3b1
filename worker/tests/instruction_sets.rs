//! Processors of one numeric class give the same bytes, whichever instructions they have.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use gigasmith_proto::domain::{Array, Conditioning, NoiseTask, WireDtype};
use gigasmith_worker::backend::Backend;
use gigasmith_worker::model::{
    BatchChoice, DeviceChoice, HubOptions, LoadOptions, ModelSource, Variant, load,
};

/// Set for a process that only writes its answers to this file.
const ANSWERS: &str = "GIGASMITH_TEST_ANSWERS";

/// Some answers of the embedded model, as bits.
fn answers() -> (String, Vec<u32>) {
    let options = LoadOptions {
        device: DeviceChoice::Cpu,
        dtype: None,
        batch: BatchChoice::Auto,
        variant: Variant::Auto,
        hub: HubOptions::from_lookup(|_| None),
    };
    let mut model = load(&ModelSource::Pocket, &options).unwrap();
    let side = model.describe().patch_side as usize;
    let values = |n: usize| (0..n).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0) * 1.7).collect();
    let latent = Array::new([4, side, side], values(4 * side * side)).unwrap();
    let (prompt, negative) = (model.encode_text("a lake").unwrap(), model.encode_text("").unwrap());
    let conditioning = Conditioning {
        prompt: prompt.states,
        pooled: prompt.pooled,
        negative: Some((negative.states, negative.pooled)),
    };
    let task = NoiseTask {
        latent: latent.clone().into(),
        wire: WireDtype::F32,
        timestep: 501,
        time_ids: [512.0, 512.0, 128.0, 0.0, 512.0, 512.0],
        conditioning: conditioning.id(),
        guidance_scale: 5.0,
        pag: None,
    };
    let noise = model.predict_noise(&task, &conditioning).unwrap();
    let image = model.decode_tile(&latent, None).unwrap();
    let moments = model.encode_tile(&image, None).unwrap();
    let all = [noise, image, moments, conditioning.prompt];
    let bits = all.iter().flat_map(|array| array.data()).map(|v| v.to_bits()).collect();
    (model.describe().numeric_class.to_string(), bits)
}

#[test]
fn instruction_sets_of_a_class_give_the_same_bytes() {
    if let Some(file) = std::env::var_os(ANSWERS) {
        let (class, bits) = answers();
        std::fs::write(file, format!("{class}\n{bits:?}")).unwrap();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut classes: BTreeMap<String, Vec<(&str, String)>> = BTreeMap::new();
    for isa in ["avx512", "avx2", "baseline"] {
        let file = folder.path().join(isa);
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "instruction_sets_of_a_class_give_the_same_bytes"])
            .env("GIGASMITH_ISA", isa)
            .env(ANSWERS, &file)
            .output()
            .unwrap();
        assert!(child.status.success(), "{isa}: {}", String::from_utf8_lossy(&child.stderr));
        let (class, bits) = read(&file);
        classes.entry(class).or_default().push((isa, bits));
    }
    for (class, all) in &classes {
        let (first, bits) = &all[0];
        for (isa, other) in all {
            assert!(bits == other, "{first} and {isa} are both {class}, and differ");
        }
    }
    // Where there is more than one set, they are not all of one class: else the variable would do nothing.
    #[cfg(target_arch = "x86_64")]
    assert_eq!(classes.len(), 1 + usize::from(std::is_x86_feature_detected!("fma")), "{:?}", classes.keys());
}

fn read(file: &Path) -> (String, String) {
    let text = std::fs::read_to_string(file).unwrap();
    let (class, bits) = text.split_once('\n').unwrap();
    (class.to_owned(), bits.to_owned())
}
