"""Write TFRecords as TensorFlow does, by protobuf's own serialiser and a checksum bit by bit."""

import struct

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


def _example_class():
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tf", syntax="proto3")
    types = descriptor_pb2.FieldDescriptorProto
    for name, type_ in (
        ("BytesList", types.TYPE_BYTES),
        ("FloatList", types.TYPE_FLOAT),
        ("Int64List", types.TYPE_INT64),
    ):
        file.message_type.add(name=name).field.add(name="value", number=1, label=types.LABEL_REPEATED, type=type_)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("bytes_list", "float_list", "int64_list"), 1):
        list_type = "".join(word.title() for word in name.split("_"))
        field = feature.field.add(name=name, number=number, label=types.LABEL_OPTIONAL, type=types.TYPE_MESSAGE)
        field.type_name, field.oneof_index = f".tf.{list_type}", 0
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=types.LABEL_OPTIONAL, type=types.TYPE_STRING)
    value = entry.field.add(name="value", number=2, label=types.LABEL_OPTIONAL, type=types.TYPE_MESSAGE)
    value.type_name = ".tf.Feature"
    field = features.field.add(name="feature", number=1, label=types.LABEL_REPEATED, type=types.TYPE_MESSAGE)
    field.type_name = ".tf.Features.FeatureEntry"
    example = file.message_type.add(name="Example")
    field = example.field.add(name="features", number=1, label=types.LABEL_OPTIONAL, type=types.TYPE_MESSAGE)
    field.type_name = ".tf.Features"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tf.Example"))


Example = _example_class()


def example(**features):
    """Serialise an Example: bytes, text, ints and floats, or lists of these."""
    message = Example()
    for name, value in features.items():
        values = value if isinstance(value, list) else [value]
        feature = message.features.feature[name]
        if all(isinstance(item, int) for item in values) and values:
            feature.int64_list.value.extend(values)
        elif all(isinstance(item, float) for item in values) and values:
            feature.float_list.value.extend(values)
        else:
            feature.bytes_list.value.extend(v.encode() if isinstance(v, str) else v for v in values)
    return message.SerializeToString(deterministic=True)


def masked(data):
    """The checksum of some bytes, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def frame(record):
    """A record between its length and its checksums."""
    length = struct.pack("<Q", len(record))
    return length + masked(length) + record + masked(record)


def write_tfrecord(path, samples):
    """Write a TFRecord of dicts of features."""
    path.write_bytes(b"".join(frame(example(**sample)) for sample in samples))
    return str(path)


def records(data):
    """Parse whole records without looking at their checksums."""
    place = 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        yield Example.FromString(data[place + 12 : place + 12 + length])
        place += 16 + length
