//! Arrays: little-endian payloads, shared rather than copied where the platform allows it.

use std::sync::Arc;

use bytes::Bytes;

use super::{WireError, required};
use crate::domain::{Array, Pixels, WireDtype};
use crate::v1;

/// The payload of an outgoing array: the values themselves, seen as bytes.
struct Payload(Arc<Array>);

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(self.0.data())
    }
}

/// Puts an array on the wire. As f32 its values are not copied on little-endian machines; as f16 they
/// are rounded to the nearest.
pub fn array_to_wire(array: impl Into<Arc<Array>>, dtype: WireDtype) -> v1::Array {
    let array = array.into();
    // No axis of an array that a render makes comes near 2^32.
    let shape = array.shape().iter().map(|&n| n as u32).collect();
    let (element, data) = match dtype {
        WireDtype::F32 if cfg!(target_endian = "little") => {
            (v1::Element::F32, Bytes::from_owner(Payload(array)))
        }
        WireDtype::F32 => (v1::Element::F32, array.data().iter().flat_map(|v| v.to_le_bytes()).collect()),
        WireDtype::F16 => {
            let mut bytes = Vec::with_capacity(array.data().len() * 2);
            array.data().iter().for_each(|&v| bytes.extend(half::f16::from_f32(v).to_le_bytes()));
            (v1::Element::F16, Bytes::from(bytes))
        }
    };
    v1::Array { shape, element: element.into(), checksum: checksum(&data), data }
}

struct PixelPayload(Arc<Pixels>);

impl AsRef<[u8]> for PixelPayload {
    fn as_ref(&self) -> &[u8] {
        self.0.rgb()
    }
}

/// Puts pixels on the wire, without copying them: (height, width, 3).
pub fn pixels_to_wire(pixels: Arc<Pixels>) -> v1::Array {
    let shape = vec![pixels.height() as u32, pixels.width() as u32, 3];
    let data = Bytes::from_owner(PixelPayload(pixels));
    v1::Array { shape, element: v1::Element::U8.into(), checksum: checksum(&data), data }
}

/// Reads pixels; `field` names them in errors.
pub fn pixels_from_wire(array: Option<v1::Array>, field: &'static str) -> Result<Pixels, WireError> {
    let array = required(array, field)?;
    if checksum(&array.data) != array.checksum {
        return Err(WireError::Damaged(field));
    }
    match (array.element(), &array.shape[..]) {
        (v1::Element::U8, &[height, width, 3]) if height > 0 && width > 0 => {
            let pixels = Pixels::new(height as usize, width as usize, array.data.into());
            pixels.map_err(|e| WireError::invalid(field, e, "a payload fits its shape"))
        }
        (element, shape) => {
            let found = format!("{element:?} of shape {shape:?}");
            Err(WireError::invalid(field, found, "pixels are bytes of shape (height, width, 3)"))
        }
    }
}

/// The first eight bytes of the payload's BLAKE3 hash: enough to tell damage.
fn checksum(data: &[u8]) -> u64 {
    let hash = blake3::hash(data);
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes"))
}

/// Reads an array; `field` names it in errors.
pub fn array_from_wire(array: Option<v1::Array>, field: &'static str) -> Result<Array, WireError> {
    let array = required(array, field)?;
    if checksum(&array.data) != array.checksum {
        return Err(WireError::Damaged(field));
    }
    let data: Vec<f32> = match array.element() {
        v1::Element::F32 => {
            array.data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
        v1::Element::F16 => {
            array.data.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
        }
        v1::Element::U8 | v1::Element::Unspecified => {
            return Err(WireError::invalid(field, array.element, "an element type is 1 (f32) or 2 (f16)"));
        }
    };
    let shape: Vec<usize> = array.shape.iter().map(|&n| n as usize).collect();
    Array::new(shape, data).map_err(|e| WireError::invalid(field, e, "an array's payload fits its shape"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(array: Array) -> v1::Array {
        array_to_wire(array, WireDtype::F32)
    }

    #[test]
    fn arrays_survive_the_wire_to_the_bit() {
        let array = Array::new([2, 3], vec![0.0, -0.0, 1.5, f32::MIN_POSITIVE, f32::NAN, 7e30]).unwrap();
        let back = array_from_wire(Some(wire(array.clone())), "x").unwrap();
        let bits = |a: &Array| a.data().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!((back.shape(), bits(&back)), (array.shape(), bits(&array)));
    }

    #[test]
    fn a_short_payload_is_refused() {
        let mut wire = wire(Array::zeros([4, 2]));
        wire.data.truncate(30);
        wire.checksum = checksum(&wire.data);
        let error = array_from_wire(Some(wire), "latent").unwrap_err().to_string();
        assert!(error.contains("latent") && error.contains("8 values, not 7"), "{error}");
    }

    #[test]
    fn damage_on_the_way_is_found() {
        let mut wire = wire(Array::zeros([4, 2]));
        let mut bytes = wire.data.to_vec();
        bytes[5] ^= 1;
        wire.data = bytes.into();
        assert_eq!(array_from_wire(Some(wire), "noise"), Err(WireError::Damaged("noise")));
    }

    #[test]
    fn half_precision_is_half_the_bytes_and_rounds_to_the_nearest() {
        let array = Array::new([3], vec![1.5, -2.0, 0.1]).unwrap();
        let wire = array_to_wire(array, WireDtype::F16);
        assert_eq!(wire.data.len(), 6);
        let back = array_from_wire(Some(wire), "x").unwrap();
        assert_eq!(back.data(), [1.5, -2.0, half::f16::from_f32(0.1).to_f32()]);
    }
}
