//! Arrays: little-endian payloads, moved rather than copied where the platform allows it.

use bytes::Bytes;

use super::{WireError, required};
use crate::domain::Array;
use crate::v1;

/// The payload of an outgoing array: the `Vec` itself, seen as bytes.
struct Payload(Vec<f32>);

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// Puts an array on the wire as f32, without copying its values on little-endian machines.
pub fn array_to_wire(array: Array) -> v1::Array {
    // No axis of an array that a render makes comes near 2^32.
    let shape = array.shape().iter().map(|&n| n as u32).collect();
    let data = if cfg!(target_endian = "little") {
        Bytes::from_owner(Payload(array.into_data()))
    } else {
        array.data().iter().flat_map(|v| v.to_le_bytes()).collect()
    };
    v1::Array { shape, element: v1::Element::F32.into(), data }
}

/// Reads an array; `field` names it in errors.
pub fn array_from_wire(array: Option<v1::Array>, field: &'static str) -> Result<Array, WireError> {
    let array = required(array, field)?;
    let data: Vec<f32> = match array.element() {
        v1::Element::F32 => {
            array.data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
        v1::Element::F16 => {
            array.data.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
        }
        v1::Element::Unspecified => {
            return Err(WireError::invalid(field, array.element, "an element type is 1 (f32) or 2 (f16)"));
        }
    };
    let shape: Vec<usize> = array.shape.iter().map(|&n| n as usize).collect();
    Array::new(shape, data).map_err(|e| WireError::invalid(field, e, "an array's payload fits its shape"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_survive_the_wire_to_the_bit() {
        let array = Array::new([2, 3], vec![0.0, -0.0, 1.5, f32::MIN_POSITIVE, f32::NAN, 7e30]).unwrap();
        let back = array_from_wire(Some(array_to_wire(array.clone())), "x").unwrap();
        let bits = |a: &Array| a.data().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!((back.shape(), bits(&back)), (array.shape(), bits(&array)));
    }

    #[test]
    fn a_short_payload_is_refused() {
        let mut wire = array_to_wire(Array::zeros([4, 2]));
        wire.data.truncate(30);
        let error = array_from_wire(Some(wire), "latent").unwrap_err().to_string();
        assert!(error.contains("latent") && error.contains("8 values, not 7"), "{error}");
    }

    #[test]
    fn half_precision_is_read() {
        let data: Vec<u8> =
            [1.5f32, -2.0].iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect();
        let wire = v1::Array { shape: vec![2], element: v1::Element::F16.into(), data: data.into() };
        assert_eq!(array_from_wire(Some(wire), "x").unwrap().data(), [1.5, -2.0]);
    }
}
