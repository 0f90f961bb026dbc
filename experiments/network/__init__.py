"""DeepEP's published dispatch and combine against counted bytes on two kinds of link."""
